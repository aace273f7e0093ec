/* The C interface of the native core: raw pointers and sizes in, an error code out.
 *
 * Sizes and strides are int64 and count elements. Nothing here owns memory, and nothing a call
 * allocates outlives it. All pointers of a call live where its backend computes. */
#ifndef CMIKERNELS_H
#define CMIKERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cmik_dtype { CMIK_FLOAT32 = 0, CMIK_FLOAT64 = 1, CMIK_BFLOAT16 = 2, CMIK_FLOAT16 = 3 };
enum cmik_reduction { CMIK_MEAN = 0, CMIK_SUM = 1, CMIK_CLASS = 2, CMIK_NONE = 3 };
enum cmik_status { CMIK_OK = 0, CMIK_OUT_OF_MEMORY = 1 };

/* One call. "Arithmetic type" is double for float64 features and float for all others.
 * Outputs that are null are not computed; outputs are contiguous. */
typedef struct cmik_problem {
  const void* features;   /* (rows, channels), any strides */
  int64_t rows;           /* N */
  int64_t channels;       /* M, at least 1 */
  int64_t row_stride;     /* elements from a row to the next */
  int64_t channel_stride; /* elements from a channel to the next */
  int64_t classes;        /* C */
  const int64_t* order;   /* (N) row at each class-sorted position; null: rows are sorted */
  const int64_t* offsets; /* (C + 1) first position of each class; null: N / C rows in each */
  const void* centroids;  /* (C, M) arithmetic type, contiguous; null: the rows' own means */
  const void* incoming;   /* gradient of the value, arithmetic type: 1, C or N numbers; or null */
  double temperature;     /* tau > 0 */
  double weight;          /* factor on value and gradient */
  void* value;            /* arithmetic type: 1, C or N numbers, by reduction */
  void* gradient;         /* (N, M) features' type: of <incoming, value>, or the value's sum */
  void* means;            /* (C, M) arithmetic type: Q; zeros for a class without rows */
  int32_t dtype;          /* cmik_dtype of features and gradient */
  int32_t reduction;      /* cmik_reduction */
  int32_t threads;        /* at most this many */
} cmik_problem;

/* Smallest and largest of at least one label. */
void cmik_label_bounds(const int64_t* labels, int64_t rows, int64_t* low, int64_t* high);

/* Rows by class, each class's in their order: offsets (classes + 1) and order (rows). Labels lie in
 * [0, classes). Returns 1 where they are sorted already; order is then left as it was. */
int cmik_index_labels(const int64_t* labels, int64_t rows, int64_t classes, int64_t* offsets,
                      int64_t* order);

/* Compute on the CPU, on the calling thread and up to threads - 1 others. */
int cmik_cpu_run(const cmik_problem* problem);

/* One call of norm_act_pool: out = pool(act(gamma xhat + beta + residual)), with xhat the maps less
 * their group's mean and divided by its deviation. Maps are contiguous, (rows, channels, height,
 * width), or in the forward channels last, (rows, height, width, channels); `out` and its gradients
 * have height / pool and width / pool, rounded down. Parameters and what concerns them are in the
 * arithmetic type, (sets, channels): rows fall into `sets` sets of equal size, one after another.
 * Inputs that are null count as: weight 1, all others 0. */
typedef struct cmik_norm_call {
  const void* x;
  const void* residual;
  const void* weight; /* gamma */
  const void* bias;   /* beta */
  const void* grad;   /* of out, for the two derivatives */
  /* What comes in for backward's outputs, in the double backward. */
  const void* x_cotangent;
  const void* residual_cotangent;
  const void* weight_cotangent;
  const void* bias_cotangent;
  void* out;    /* forward's output */
  void* x_grad; /* outputs of the backward; of the double backward x_grad and weight_grad too, */
  void* weight_grad; /* and grad_grad. Null where they are not wanted. */
  void* bias_grad;
  void* residual_grad;
  void* grad_grad;
  int64_t rows;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t groups; /* that channels of a row fall into */
  int64_t sets;
  double slope; /* of the activation below 0: 0 for ReLU, 1 for none */
  double eps;   /* added to the variance */
  int32_t pool; /* 2: means of 2 x 2 entries; 1: none */
  int32_t channels_last;
  int32_t dtype;
  int32_t threads;
} cmik_norm_call;

enum cmik_norm_order { CMIK_FORWARD = 0, CMIK_BACKWARD = 1, CMIK_DOUBLE_BACKWARD = 2 };

/* Compute on the CPU, as cmik_cpu_run does. */
int cmik_cpu_norm(const cmik_norm_call* call, int order);

/* The instruction set the CPU kernels use here: "avx512", "avx2" or "baseline". */
const char* cmik_cpu_isa(void);

/* Whose threads the CPU kernels run on. */
const char* cmik_cpu_threading(void);

/* What the GPU kernels take besides. They do not read the problem's `threads`. */
typedef struct cmik_cuda_call {
  cmik_problem problem;
  void* workspace;         /* on the device, aligned to 256 bytes */
  int64_t workspace_bytes; /* at least what cmik_cuda_workspace says */
  uint32_t* ticket;        /* for a value of all rows: 0, on the device, of no other call at work */
  int64_t largest;         /* rows of the largest class, where there are offsets */
  void* stream;            /* of the device */
  int32_t device;
  int32_t unless_one; /* leave `gradient` as it is where `incoming` is 1 */
} cmik_cuda_call;

/* Statuses of the GPU functions besides CMIK_OK: those of the CUDA runtime, and these. */
enum cmik_cuda_status { CMIK_GPU_TOO_OLD = -1, CMIK_TOO_LARGE = -2, CMIK_SMALL_WORKSPACE = -3 };

/* Start the computation on the stream. Allocates nothing and does not wait. */
int cmik_cuda_run(const cmik_cuda_call* call);

/* Bytes of workspace that the call needs; reads sizes and the alignment of features only. */
int cmik_cuda_workspace(const cmik_cuda_call* call, int64_t* bytes);

/* What a status of the two means. */
const char* cmik_cuda_message(int status);

/* What plans for a device depend on; see csrc/cuda/plan.hpp. */
typedef struct cmik_cuda_chip {
  int32_t capability; /* 90 for 9.0 */
  int32_t processors; /* multiprocessors */
  /* Clusters that are resident at once: of 2, 4, 8 and 16 blocks, each of 128, 256 and 512 threads
   * with the most shared memory that 4, 2 and 1 of them leave one another on a multiprocessor. 0
   * where the GPU has no such clusters. */
  int32_t resident_clusters[4][3];
  int64_t block_bytes;     /* shared memory that a block may have */
  int64_t processor_bytes; /* shared memory of a multiprocessor */
  int64_t cache_bytes;     /* L2 */
} cmik_cuda_chip;

int cmik_cuda_chip_of(int device, cmik_cuda_chip* chip);

/* CUDA version that the driver supports, as 1000 major + 10 minor, 0 without a driver; and the one
 * that the kernels were built with. */
int cmik_cuda_driver_version(void);
int cmik_cuda_runtime_version(void);

#ifdef __cplusplus
}
#endif
#endif
