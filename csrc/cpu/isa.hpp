// The instruction set that a translation unit is compiled for: its vectors, and the names that it
// gives to what it makes. CMIK_ISA is the set's name.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define CMIK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CMIK_VECTOR_BYTES 32
#else
#define CMIK_VECTOR_BYTES 16
#endif

#define CMIK_CONCAT_(a, b) a##b
#define CMIK_CONCAT(a, b) CMIK_CONCAT_(a, b)
