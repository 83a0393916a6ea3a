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

template <class A> A infinity() { return A(1e308 * 10); }

// The row of this thread where rows are dealt to blocks (BLOCK, rows of a block).
inline long long own_row() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }
// The number of this thread in the grid, of one axis.
inline long long own_index() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
