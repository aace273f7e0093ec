// How a call is computed, from its sizes and the chip alone. Plain C++: tested without a GPU.
//
//   classes   a cluster of blocks holds a class in shared memory: one launch reads and writes once.
//             Where it does not fit, or may not be copied in bulk, it is read twice, the second
//             time from L2.
//   slots     few or huge classes: blocks take slots of rows, for sums and again for the rest
//   tiny      a warp holds a class in registers, a row in each of its teams
//   wide      rows beyond the registers of a block: the same, column by column
//
// Threads that share a row are a team; a thread holds up to `kPacks` packs of 16 bytes of it.
#pragma once

#include <cstdint>

#include "cmikernels.h"
#include "math/cmi_math.hpp"

namespace cmik {

enum class Kind : int32_t { classes, slots, wide, tiny };

// What is known of all rows when a kernel is compiled.
enum class Form : int32_t {
  full,    // 8, 16 or 32 lanes, which have all their packs; like `packed`
  packed,  // rows are made of packs, and their weights are equal; held where there are bulk copies
  any      // read and written entry by entry
};

// What is known of teams when a kernel is compiled: their lanes, or that they are lanes of a warp,
// or several warps. Four lanes are for the kind `tiny` alone.
enum class Team : int32_t { lanes8, lanes16, lanes32, lanes, warps, lanes4 };

using Chip = cmik_cuda_chip;

struct Shape {
  int64_t rows;
  int64_t classes;
  int64_t largest;  // rows of the largest class
  int64_t channels;
  int32_t element_bytes;
  bool ragged;    // classes differ in size, and rows may stand in any order
  bool aligned;   // rows consist of 16-byte packs, of the gradient too
  bool given;     // centroids are given
  bool weighted;  // rows' weights differ and centroids are their own
};

struct Plan {
  Kind kind;
  Form form;
  int32_t lanes;       // threads of a team
  int32_t threads;     // of a block
  int32_t cluster;     // blocks of a cluster
  int32_t stages;      // classes a block has in shared memory at once
  int32_t share_rows;  // rows of the largest class that fall to a block
  int64_t rows_per_slot;
  int64_t blocks;        // of the main launch
  int64_t slots;         // 0 but for kinds slots and wide
  int64_t lead;          // slots that sums are ahead of the rest
  bool read_once;        // from memory: a slot's rows should be in L2 the second time
  int64_t shared_bytes;  // of a block of the main launch
  int64_t parts;         // partial values of classes, at most
  int64_t workspace_bytes;
};

constexpr int kPackBytes = 16;
constexpr int kMostThreads = 512;
constexpr int kMostStages = 4;
constexpr int kInboxBarrier = kMostStages, kOutcomeBarrier = kMostStages + 1;
constexpr int kWarpThreads = 32;
constexpr int kFewestMeeting = 128;  // threads of a block whose teams are warps: each team has a
                                     // barrier, and a multiprocessor has 64

constexpr int kRowStats = 4;  // numbers that are kept of each row, see RowStats
constexpr int kMostSumRows = 4;
constexpr int kTinyLanes[] = {4, 8};      // of a team, where a warp has a class
constexpr int kProcessorThreads = 512;    // that a multiprocessor's registers serve
constexpr int64_t kReservedBytes = 1024;  // of a block's shared memory, by the system
constexpr int kLeastCapability = 80;      // of a GPU that can be used

// What the rows and columns of a chip's table of resident clusters stand for.
constexpr int kClusterSizes[] = {2, 4, 8, 16};      // blocks of a cluster
constexpr int kClusterThreads[] = {128, 256, 512};  // threads of each of its blocks

constexpr int64_t kFewRowsPerSlot = 32;    // at least, so that sums take little memory,
constexpr int64_t kFewestRowsPerSlot = 8;  // or these, where they would not fill the chip

// Where things are in a block's shared memory, in bytes from its start: what every block has,
constexpr int kTopAt = 0;         // two numbers of the class, see Columns
constexpr int kReductionAt = 16;  // one number a warp, for whole blocks: values, and masses before;
constexpr int kPeakAt = 144;      // the largest entry of a centroid
constexpr int kExchangeAt = 272;  // two a warp, by turns, for teams of several warps
constexpr int kBarriersAt = 528;  // one for each stage, and those of a cluster
constexpr int kTotalsAt = 576;    // one number a warp: values of all classes so far
constexpr int kParityAt = 704;    // an int: of the cluster's barriers
constexpr int kVectorsAt = 720;   // column vectors of a class, of `width` numbers each,
constexpr int kCentroid = 1;      // by their number there. In the first places are the sums of
constexpr int kTarget = 2;        // rows, which have been used when the others come; where row
constexpr int kRho = 3;           // weights differ they have places of their own;
struct SharedLayout {             // and the rest.
  int32_t sums;                   // (sum rows, width)
  int32_t stats;                  // (share_rows, kRowStats)
  int32_t inbox;                  // (cluster, slice) sums of a cluster's blocks, see slice_packs()
  int32_t tiles;                  // (stages, share_rows, channels) of features
  int64_t bytes;
};

// Of the estimate, see plan.cpp.
constexpr double kColumnCost = 70;  // of a column of a class, in every block that has some
constexpr double kRemoteCost = 20;  // more in a cluster
constexpr double kSumBytes = 24;    // of a column of a slot: sums and centroids, out and in

// Columns of a class that a block adds up where slots are put together.
constexpr int kMeanColumns = 32;

CMIK_SHARED constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Entries of a row in a pack, and packs of a row that a thread holds: 32 numbers in registers
// beside as many sums, or a quarter as many of double; half as many where more is to be minded.
CMIK_SHARED constexpr int pack_entries(int element_bytes) { return kPackBytes / element_bytes; }
CMIK_SHARED constexpr int thread_packs(int element_bytes, Form form) {
  return (element_bytes == 4 ? 8 : 4) / (form == Form::any ? 2 : 1);
}
constexpr int64_t counters_bytes(int64_t classes) { return (1 + classes) * 4; }
constexpr int arithmetic_bytes(int element_bytes) { return element_bytes == 8 ? 8 : 4; }

// Sums of rows that the threads of a block make: one a warp, or one a team of several.
CMIK_SHARED constexpr int sum_rows_of(int threads, int lanes) {
  return threads / (lanes > kWarpThreads ? lanes : kWarpThreads);
}

// Numbers in the workspace, in arithmetic type but for counters and parts, which are double.
struct Workspace {
  int64_t counters;   // (1 + classes) uint32_t: items taken, and those of each class that are done
  int64_t parts;      // (parts) partial values
  int64_t stats;      // (rows, kRowStats)
  int64_t sums;       // (slots, channels)
  int64_t centroids;  // (classes, channels)
  int64_t rho;        // (classes, channels)
  int64_t bytes;
};

// Shared memory that each block may have where blocks of so many threads fill a multiprocessor.
int64_t shared_budget(const Chip& chip, int threads);
// Packs of a column vector, of 16 bytes, that a block of a cluster is the owner of. A power of 2,
// so that whose a column is follows from its bits: the last blocks may own less, or nothing.
int64_t slice_packs(const Shape& shape, const Plan& plan);
SharedLayout shared_layout(const Shape& shape, const Plan& plan);
Workspace workspace_layout(const Shape& shape, const Plan& plan);
Plan make_plan(const Shape& shape, const Chip& chip);

}  // namespace cmik
