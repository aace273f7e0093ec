// Other threads to work on: torch's own, where they can be had.
#pragma once

namespace cmik {

// Run body(data, thread) on the calling thread and, at the same time, on others; `thread` differs
// and is below `threads`. How many take part is not promised: the body must finish all work even
// alone. A thread keeps its number from call to call where it can, and so finds in its caches what
// it left.
void run_on_threads(int threads, void (*body)(void*, int thread), void* data);

// The least work worth another thread, in elements of the features.
long long elements_worth_a_thread();

const char* threading_name();

}  // namespace cmik
