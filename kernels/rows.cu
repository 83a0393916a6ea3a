// Reductions of the rows of a matrix (rows, K). T: its type; BLOCK: threads of a row; VECTOR: 16 bytes at a time.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

// The type of the results may be that which is calculated in: exactly one of out and wide is given.
inline void put(T* out, A* wide, long long m, A value) {
    if (threadIdx.x) return;
    if (out) {
        out[m] = narrow<T>(value);
    } else {
        wide[m] = value;
    }
}

KERNEL sums(const T* x, T* out, A* wide, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    A sum = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        const auto v = load<PACK>(x + m * K + k);
        for (int i = 0; i < PACK; i++) sum += widen(v[i]);
    });
    put(out, wide, m, fold<BLOCK>(sum, Sum()));
}

struct MaxOrNan {
    template <class V> V operator()(V x, V y) const { return x > y || x != x ? x : y; }
};

KERNEL largest(const T* x, T* out, A* wide, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    A top = -infinity<A>();
    along_row<BLOCK, PACK>(K, [&](long long k) {
        const auto v = load<PACK>(x + m * K + k);
        for (int i = 0; i < PACK; i++) top = MaxOrNan()(top, widen(v[i]));
    });
    put(out, wide, m, fold<BLOCK>(top, MaxOrNan()));
}
