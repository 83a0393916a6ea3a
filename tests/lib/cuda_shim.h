// CUDA C++ on the CPU: what a kernel's text finds instead of the GPU. Every thread of a block is a fiber of its own
// (cuda_shim.cpp); blocks run one after the other.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define ON_CPU 1
#define KERNEL static void
#define SHARED(type, name, count)             \
    static shim::Shared<type, (count)> name; \
    name.begin()

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};

extern "C" {
extern Index shim_thread, shim_block, shim_block_size, shim_grid_size;
extern long long shim_block_number;  // over all launches
void shim_wait_block();
void shim_wait_warp();
uint64_t shim_exchange(uint64_t value, unsigned lane);
unsigned shim_ballot(int vote);
[[noreturn]] void shim_fail(const char* what, long long value);
int shim_run(void (*body)(void*), void* argument, const unsigned* grid, const unsigned* block, int schedule);
}

#define threadIdx shim_thread
#define blockIdx shim_block
#define blockDim shim_block_size
#define gridDim shim_grid_size

using std::abs, std::ceil, std::erf, std::fabs, std::exp, std::expm1, std::floor, std::fmax, std::fmin, std::isfinite, std::isinf;
using std::isnan, std::log, std::log1p, std::pow, std::rint, std::sqrt, std::tanh;

inline void __syncthreads() { shim_wait_block(); }

namespace shim {
template <class T> T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 8);
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    word = shim_exchange(word, lane);
    std::memcpy(&value, &word, sizeof(T));
    return value;
}
inline unsigned lane() {
    return (shim_thread.x + shim_block_size.x * (shim_thread.y + shim_block_size.y * shim_thread.z)) % 32;
}
inline void check_mask(unsigned mask) {
    if (mask != ~0u) shim_fail("a warp-wide call names some lanes only, mask", mask);
}

// An array in shared memory: poisoned when a block begins, and no index leaves it.
template <class T, int N> class Shared {
    alignas(16) T elements[N];
    long long block = -1;

  public:
    void begin() {
        if (block == shim_block_number) return;
        block = shim_block_number;
        std::memset(static_cast<void*>(elements), 0xFF, sizeof elements);
    }
    T& operator[](long long i) {
        if (i < 0 || i >= N) shim_fail("an index outside of a shared array", i);
        return elements[i];
    }
};

inline void check_alignment(const void* p, int bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) shim_fail("an access that is not aligned to its size", bytes);
}

inline float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    float size;
    if (exponent == 31)
        size = fraction ? NAN : INFINITY;
    else
        size = exponent ? std::ldexp(float(fraction + 1024), exponent - 25) : std::ldexp(float(fraction), -24);
    return h >> 15 ? -size : size;
}
inline uint16_t to_half(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (size != size) return 0x7FFF;
    if (size >= 65520) return sign | 0x7C00;
    int exponent;
    std::frexp(size, &exponent);  // size is in [2 ** (exponent - 1), 2 ** exponent)
    if (size == 0 || exponent < -13) return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
    const int fraction = int(std::nearbyint(std::ldexp(size, 11 - exponent)));  // 1024 to 2048
    return uint16_t(sign | (((exponent + 14) << 10) + (fraction - 1024)));
}
inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The letters that NumPy has for types; those of a kernel's parameters, pointers with a star.
template <class P> struct Letter;
template <> struct Letter<float> : std::integral_constant<char, 'f'> {};
template <> struct Letter<double> : std::integral_constant<char, 'd'> {};
template <> struct Letter<bool> : std::integral_constant<char, '?'> {};
template <> struct Letter<unsigned char> : std::integral_constant<char, 'B'> {};
template <> struct Letter<unsigned short> : std::integral_constant<char, 'H'> {};
template <> struct Letter<int> : std::integral_constant<char, 'i'> {};
template <> struct Letter<unsigned> : std::integral_constant<char, 'I'> {};
template <> struct Letter<long long> : std::integral_constant<char, 'q'> {};
template <> struct Letter<unsigned long long> : std::integral_constant<char, 'Q'> {};
template <class... P> const char* kinds(void (*)(P...)) {
    static char text[2 * sizeof...(P) + 1] = {};
    char* end = text;
    ((std::is_pointer_v<P> ? void(*end++ = '*') : void(),
      *end++ = Letter<std::remove_const_t<std::remove_pointer_t<P>>>::value),
     ...);
    *end = 0;
    return text;
}
template <class P> P from_word(uint64_t word) {
    P value;
    static_assert(sizeof value == sizeof word);
    std::memcpy(&value, &word, sizeof word);
    return value;
}
template <class... P> struct Call {
    void (*kernel)(P...);
    const uint64_t* words;
    template <size_t... I> void go(std::index_sequence<I...>) { kernel(from_word<P>(words[I])...); }
    static void body(void* self) { static_cast<Call*>(self)->go(std::index_sequence_for<P...>{}); }
};
template <class... P>
int run(void (*kernel)(P...), const unsigned* grid, const unsigned* block, const uint64_t* words, int schedule) {
    Call<P...> call{kernel, words};
    return shim_run(Call<P...>::body, &call, grid, block, schedule);
}
}  // namespace shim

inline void __syncwarp(unsigned mask = ~0u) {
    shim::check_mask(mask);
    shim_wait_warp();
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane) {
    shim::check_mask(mask);
    return shim::exchange(value, lane % 32);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits) {
    shim::check_mask(mask);
    return shim::exchange(value, shim::lane() ^ bits);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int count) {
    shim::check_mask(mask);
    const unsigned from = shim::lane() + count;
    return shim::exchange(value, from < 32 ? from : shim::lane());
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int count) {
    shim::check_mask(mask);
    const int from = int(shim::lane()) - count;
    return shim::exchange(value, from >= 0 ? from : shim::lane());
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    shim::check_mask(mask);
    return shim_ballot(vote != 0);
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == ~0u; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline unsigned __float_as_uint(float x) {
    unsigned y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline long long __double_as_longlong(double x) {
    long long y;
    std::memcpy(&y, &x, 8);
    return y;
}
inline double __longlong_as_double(long long x) {
    double y;
    std::memcpy(&y, &x, 8);
    return y;
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline float rsqrt(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline int atomicOr(int* p, int bits) {  // of whole numbers only: an order of floats would show
    const int before = *p;
    *p |= bits;
    return before;
}
inline int atomicAdd(int* p, int x) {
    const int before = *p;
    *p += x;
    return before;
}
