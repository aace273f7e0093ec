// Other threads to work on: torch's own, where they can be had.
#pragma once

namespace cmik {

// Run body(data) on the calling thread and, at the same time, on up to threads - 1 others. How many
// take part is not promised: the body must finish all work even alone.
void run_on_threads(int threads, void (*body)(void*), void* data);

// The least work worth another thread, in elements of the features.
long long elements_worth_a_thread();

const char* threading_name();

}  // namespace cmik
