// Softmax and cross-entropy over the rows of (rows, K). T: type of the scores; BLOCK: threads of a row;
// VECTOR: 16 bytes at a time.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

struct Stats {
    A top, total;
};

Stats row_stats_of(const T* row, long long K) {
    A top = -infinity<A>();
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto x = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) top = Max()(top, widen(x[i]));
    });
    top = fold<BLOCK>(top, Max());
    A total = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto x = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) total += exp(widen(x[i]) - top);
    });
    return {top, fold<BLOCK>(total, Sum())};
}

KERNEL softmax(const T* x, T* out, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const T* row = x + m * K;
    const Stats stats = row_stats_of(row, K);
    const A top = stats.top, total = stats.total;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>(exp(widen(v[i]) - top) / total);
        store(out + m * K + k, v);
    });
}

KERNEL softmax_grad(const T* g, const T* y, T* out, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K;
    A dot = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k), yv = load<PACK>(y + start + k);
        for (int i = 0; i < PACK; i++) dot += widen(gv[i]) * widen(yv[i]);
    });
    dot = fold<BLOCK>(dot, Sum());
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k), yv = load<PACK>(y + start + k);
        for (int i = 0; i < PACK; i++) gv[i] = narrow<T>(widen(yv[i]) * (widen(gv[i]) - dot));
        store(out + start + k, gv);
    });
}

KERNEL log_softmax(const T* x, T* out, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const T* row = x + m * K;
    const Stats stats = row_stats_of(row, K);
    const A top = stats.top, log_total = log(stats.total);
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(row + k);
        for (int i = 0; i < PACK; i++) v[i] = narrow<T>((widen(v[i]) - top) - log_total);
        store(out + m * K + k, v);
    });
}

KERNEL log_softmax_grad(const T* g, const T* y, T* out, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K;
    A whole = 0;
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k);
        for (int i = 0; i < PACK; i++) whole += widen(gv[i]);
    });
    whole = fold<BLOCK>(whole, Sum());
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto gv = load<PACK>(g + start + k), yv = load<PACK>(y + start + k);
        for (int i = 0; i < PACK; i++) gv[i] = narrow<T>(widen(gv[i]) - exp(widen(yv[i])) * whole);
        store(out + start + k, gv);
    });
}

KERNEL row_stats(const T* x, A* stats, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const Stats s = row_stats_of(x + m * K, K);
    if (threadIdx.x == 0) {
        stats[m] = s.top;
        stats[rows + m] = log(s.total);
    }
}

KERNEL cross_entropy(const T* x, const long long* target, const A* weight, A* stats, A* loss, double smoothing,
                     long long ignore, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const T* row = x + m * K;
    const Stats s = row_stats_of(row, K);
    const A top = s.top, log_total = log(s.total);
    A spread = 0;
    if (smoothing != 0) {
        along_row<BLOCK, PACK>(K, [&](long long k) {
            auto v = load<PACK>(row + k);
            auto w = load<PACK>(weight + k);
            for (int i = 0; i < PACK; i++) spread += w[i] * (log_total - (widen(v[i]) - top));
        });
        spread = fold<BLOCK>(spread, Sum());
    }
    if (threadIdx.x) return;
    stats[m] = top;
    stats[rows + m] = log_total;
    const long long t = target[m];
    if (t == ignore) {
        loss[m] = 0;
    } else {
        const A even = A(smoothing);
        loss[m] = (1 - even) * weight[t] * (log_total - (widen(row[t]) - top)) + even / K * spread;
    }
}

// out may be x: a thread reads only what it writes.
KERNEL cross_entropy_grad(const A* g, const T* x, const long long* target, const A* weight, const A* weight_sum,
                          const A* stats, T* out, double smoothing, long long ignore, long long rows, long long K) {
    const long long m = own_row();
    if (m >= rows) return;
    const long long start = m * K, t = target[m];
    const bool counts = t != ignore;
    const A each = A(smoothing) / K, top = stats[m], log_total = stats[rows + m];
    const A hot = counts ? (1 - A(smoothing)) * weight[t] : 0;
    const A wanted = hot + each * weight_sum[0], gm = g[m];
    along_row<BLOCK, PACK>(K, [&](long long k) {
        auto v = load<PACK>(x + start + k);
        auto w = load<PACK>(weight + k);
        for (int i = 0; i < PACK; i++) {
            A d = gm * (exp((widen(v[i]) - top) - log_total) * wanted - each * w[i]);
            if (k + i == t) d -= gm * hot;
            v[i] = narrow<T>(counts ? d : 0);
        }
        store(out + start + k, v);
    });
}
