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
