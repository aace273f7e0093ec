// The GPU kernels compiled for the emulator: with CMIK_FEATURES those of one features' type,
// without it the launcher and its door to Python.
#define CMIK_EMULATED
#if defined(CMIK_FEATURES)
#include "kernels.cu"
#else
#include "launch.cu"
// after the launcher
#include "bindings.cpp"
#endif
