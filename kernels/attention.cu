// The softmax inside attention, in place, on rows (M, S) of scores. T: their type; BLOCK: threads of a row; VECTOR: 16
// bytes at a time. Statistics are of the type that is calculated in.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

// How many keys row m sees.
inline long long seen(long long m, long long S, long long causal, long long first, long long rows) {
    const long long n = first + m % rows + 1;
    return causal && n < S ? n : S;
}

KERNEL softmax(T* x, A* lse, A* share, double scale, long long causal, long long first, long long rows, long long M,
               long long S) {
    const long long m = own_row();
    if (m >= M) return;
    T* row = x + m * S;
    const long long n = seen(m, S, causal, first, rows);
    const A factor = A(scale);
    A top = -infinity<A>();
    along_row<BLOCK, PACK>(n, [&](long long k) {
        const auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++)
            if (k + i < n) top = Max()(top, widen(v[i]));
    });
    top = fold<BLOCK>(top, Max());
    if (top == -infinity<A>()) top = 0;
    A total = 0;
    along_row<BLOCK, PACK>(S, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) {
            const A e = k + i < n ? exp((widen(v[i]) - top) * factor) : A(0);
            total += e;
            v[i] = narrow<T>(e);
        }
        store(row + k, v);
    });
    total = fold<BLOCK>(total, Sum());
    if (threadIdx.x) return;
    lse[m] = total == 0 ? -infinity<A>() : log(total) + top * factor;
    share[m] = total == 0 ? A(0) : 1 / total;
}

KERNEL softmax_again(T* x, const A* lse, double scale, long long causal, long long first, long long rows, long long M,
                     long long S) {
    const long long m = own_row();
    if (m >= M) return;
    T* row = x + m * S;
    const A factor = A(scale), shift = lse[m];
    const long long n = shift == -infinity<A>() ? 0 : seen(m, S, causal, first, rows);
    along_row<BLOCK, PACK>(S, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>(k + i < n ? exp(widen(v[i]) * factor - shift) : A(0));
        store(row + k, v);
    });
}

KERNEL softmax_grad(T* g, const T* p, const A* dot, long long M, long long S) {
    const long long m = own_row();
    if (m >= M) return;
    const long long start = m * S;
    const A d = dot[m];
    along_row<BLOCK, PACK>(S, [&](long long k) {
        auto gv = load<PACK>(g + start + k);
        const auto pv = load<PACK>(p + start + k);
        for (int i = 0; i < PACK; i++) gv[i] = narrow<T>(widen(pv[i]) * (widen(gv[i]) - d));
        store(g + start + k, gv);
    });
}
