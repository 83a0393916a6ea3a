// What all kernels share; the text of every .cu file comes after it. Needs no header of CUDA's.
// Kernels take pointers, long long and double only. No thread leaves a kernel before a barrier that others wait at.

#ifndef SHARED  // not on the CPU
#define KERNEL extern "C" __global__ void
#define SHARED(type, name, count) __shared__ type name[count]
#endif

struct half_t {
    unsigned short bits;
};
struct bfloat16_t {
    unsigned short bits;
};

// The type in which numbers of another are calculated with.
template <class T> struct Wide {
    typedef float type;
};
template <> struct Wide<double> {
    typedef double type;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16_t x) { return __uint_as_float((unsigned)x.bits << 16); }

template <class T> T narrow(typename Wide<T>::type x) { return x; }

// The hardware's conversions: to the nearest number, to the even one of two.
#ifndef ON_CPU
inline float widen(half_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
template <> inline half_t narrow<half_t>(float x) {
    half_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> inline bfloat16_t narrow<bfloat16_t>(float x) {
    bfloat16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
#else
template <> struct shim::Letter<half_t> : std::integral_constant<char, 'e'> {};
template <> struct shim::Letter<bfloat16_t> : std::integral_constant<char, 'E'> {};
inline float widen(half_t x) { return shim::from_half(x.bits); }
template <> inline half_t narrow<half_t>(float x) { return {shim::to_half(x)}; }
template <> inline bfloat16_t narrow<bfloat16_t>(float x) { return {shim::to_bfloat16(x)}; }
#endif

// N elements side by side, moved in as few and as wide accesses as 16 bytes allow.
template <int BYTES> struct Word;
template <> struct Word<1> {
    typedef unsigned char type;
};
template <> struct Word<2> {
    typedef unsigned short type;
};
template <> struct Word<4> {
    typedef unsigned type;
};
template <> struct Word<8> {
    typedef uint2 type;
};
template <> struct Word<16> {
    typedef uint4 type;
};

template <class T, int N> struct Pack {
    static constexpr int width = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
    typedef typename Word<width>::type word;
    static constexpr int words = N * sizeof(T) / width;

    union {
        word raw[words];
        T value[N];
    };
    T& operator[](int i) { return value[i]; }
    const T& operator[](int i) const { return value[i]; }
};

#ifndef ON_CPU
inline void check_alignment(const void*, int) {}
#else
inline void check_alignment(const void* p, int bytes) { shim::check_alignment(p, bytes); }
#endif

template <int N, class T> Pack<T, N> load(const T* from) {
    Pack<T, N> pack;
    typedef typename Pack<T, N>::word word;
    check_alignment(from, sizeof(word));
#pragma unroll
    for (int i = 0; i < Pack<T, N>::words; i++) pack.raw[i] = reinterpret_cast<const word*>(from)[i];
    return pack;
}

template <class T, int N> void store(T* to, const Pack<T, N>& pack) {
    typedef typename Pack<T, N>::word word;
    check_alignment(to, sizeof(word));
#pragma unroll
    for (int i = 0; i < Pack<T, N>::words; i++) reinterpret_cast<word*>(to)[i] = pack.raw[i];
}

struct Sum {
    template <class A> A operator()(A x, A y) const { return x + y; }
};
struct Max {  // the other one if the first is NaN
    template <class A> A operator()(A x, A y) const { return x > y ? x : y; }
};

// Fold one value of each thread of a row (BLOCK threads along x, a multiple of 32) in one fixed order; all threads of
// the row get the same bits. With BLOCK == 32 every warp has a row of its own.
template <int BLOCK, class Op, class A> A fold(A v, Op op) {
#pragma unroll
    for (int d = 16; d; d /= 2) v = op(v, __shfl_xor_sync(~0u, v, d));
    if constexpr (BLOCK > 32) {
        SHARED(A, part, BLOCK / 32);
        __syncthreads();  // some may still read what the fold before left here
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
        __syncthreads();
        v = part[0];
#pragma unroll
        for (int i = 1; i < BLOCK / 32; i++) v = op(v, A(part[i]));
    }
    return v;
}

// Call f(k) for the first of every N elements of a row that this thread has, side by side with its neighbours'.
template <int BLOCK, int N, class F> void along_row(long long K, F f) {
#pragma unroll 1
    for (long long k = threadIdx.x * N; k < K; k += BLOCK * N) f(k);
}

// Sums over columns of a matrix, in one fixed order: a block has 32 columns along x and COLUMN_LANES lanes along y, each
// with every COLUMN_LANES-th row from begin to end; f(row) gives what is added up. All lanes of a column get the sum.
constexpr int COLUMN_LANES = 8;
template <class A, class F> A fold_column(long long begin, long long end, F f) {
    A sum = 0;
    for (long long m = begin + threadIdx.y; m < end; m += COLUMN_LANES) sum += f(m);
    SHARED(A, part, COLUMN_LANES * 32);
    __syncthreads();  // some may still read what the sum before left here
    part[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    A at[COLUMN_LANES];
#pragma unroll
    for (int i = 0; i < COLUMN_LANES; i++) at[i] = part[i * 32 + threadIdx.x];
    return ((at[0] + at[1]) + (at[2] + at[3])) + ((at[4] + at[5]) + (at[6] + at[7]));
}

// -------------------------------------------------------------------------------------------------- random numbers

// Philox4x64-10 (Salmon et al. 2011). The key is four words in device memory: seed, stream, draw, purpose; blocks of four
// words count from 1, as NumPy has them.
typedef unsigned long long u64;
struct Random {
    u64 word[4];
    Random(const u64* key, u64 block) : word{block, key[2], 0, key[3]} {
        u64 k0 = key[0], k1 = key[1];
#pragma unroll
        for (int i = 0; i < 10; i++) {
            const u64 high0 = __umul64hi(0xD2E7470EE14C6C93ull, word[0]), low0 = 0xD2E7470EE14C6C93ull * word[0];
            const u64 high1 = __umul64hi(0xCA5A826395121157ull, word[2]), low1 = 0xCA5A826395121157ull * word[2];
            word[0] = high1 ^ word[1] ^ k0;
            word[1] = low1;
            word[2] = high0 ^ word[3] ^ k1;
            word[3] = low0;
            k0 += 0x9E3779B97F4A7C15ull;
            k1 += 0xBB67AE8584CAA73Bull;
        }
    }
    unsigned half(int i) const { return unsigned(word[i / 2] >> 32 * (i % 2)); }  // of 8, the lower one first
};

// Round up or down with a probability by the distance, given 16 random bits; what has no neighbours as narrow does.
template <class T> T narrow_randomly(typename Wide<T>::type x, unsigned) { return x; }
template <> inline bfloat16_t narrow_randomly<bfloat16_t>(float x, unsigned bits) {
    const unsigned u = __float_as_uint(x);
    if ((u & 0x7F800000) == 0x7F800000) return narrow<bfloat16_t>(x);
    return {(unsigned short)((u + (bits & 0xFFFF)) >> 16)};
}
template <> inline half_t narrow_randomly<half_t>(float x, unsigned bits) {
    const unsigned u = __float_as_uint(x), exponent = u >> 23 & 255;
    if (exponent == 255) return narrow<half_t>(x);
    if (exponent >= 113) return narrow<half_t>(__uint_as_float((u + (bits & 0x1FFF)) & ~0x1FFFu));  // 13 bits too many
    const float steps = floor(fabs(x) * 16777216.0f + float(bits & 0xFFFF) * (1 / 65536.0f));  // of 2 ** -24
    return {(unsigned short)(unsigned(steps) | (u >> 16 & 0x8000))};
}

// ------------------------------------------------------------------------------------------------------ flat buffers

// A block of 256 threads has a tile of 4096 elements: f(at, j) is called for 4 elements from at on, of which the last
// few of the buffer may not be there; j counts the thread's calls, 0 to 3.
constexpr int TILE = 4096;
template <class F> void along_tile(long long begin, long long end, F f) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const long long at = begin + j * 1024 + threadIdx.x * 4;
        if (at < end) f(at, j);
    }
}
template <bool VECTOR, class T> Pack<T, 4> load_some(const T* from, long long at, long long end) {
    if (VECTOR && at + 4 <= end) return load<4>(from + at);
    Pack<T, 4> pack;
    for (int i = 0; i < 4; i++) pack[i] = from[at + i < end ? at + i : at];
    return pack;
}
template <bool VECTOR, class T> void store_some(T* to, long long at, long long end, const Pack<T, 4>& pack) {
    if (VECTOR && at + 4 <= end) return store(to + at, pack);
    for (int i = 0; i < 4; i++)
        if (at + i < end) to[at + i] = pack[i];
}

template <class A> A infinity() { return A(1e308 * 10); }

// The row of this thread where rows are dealt to blocks (BLOCK, rows of a block).
inline long long own_row() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }
// The number of this thread in the grid, of one axis.
inline long long own_index() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
