// Sparse maps and maxima along the middle axis of (A, size, B). T: type of the arrays.
typedef Wide<T>::type A;

KERNEL map_axis(const T* x, const long long* starts, const long long* index, const A* weight, T* out, long long size,
                long long out_size, long long B, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long b = at % B, i = at / B % out_size, a = at / (B * out_size);
    A total = 0;
    for (long long k = starts[i]; k < starts[i + 1]; k++) total += weight[k] * widen(x[(a * size + index[k]) * B + b]);
    out[at] = narrow<T>(total);
}

KERNEL max_axis(const T* x, const long long* starts, const long long* stops, T* out, long long* where, long long step,
                long long size, long long out_size, long long B, long long count) {
    const long long at = own_index();
    if (at >= count) return;
    const long long b = at % B, i = at / B % out_size, a = at / (B * out_size);
    A best = -infinity<A>();
    long long place = -1;
    for (long long k = starts[i]; k < stops[i]; k += step) {
        const A here = widen(x[(a * size + k) * B + b]);
        if (here > best || here != here || place < 0) {
            best = here;
            place = k;
        }
    }
    out[at] = narrow<T>(best);
    where[at] = place;
}
