// Sums over the rows of a matrix (rows, columns). T: its type.
typedef Wide<T>::type A;

KERNEL part_sums(const T* x, A* part, long long each, long long rows, long long columns) {
    const long long c = blockIdx.x * 32 + threadIdx.x, begin = blockIdx.y * each;
    const long long end = c < columns ? (begin + each < rows ? begin + each : rows) : begin;
    const A sum = fold_column<A>(begin, end, [&](long long m) { return widen(x[m * columns + c]); });
    if (threadIdx.y == 0 && c < columns) part[blockIdx.y * columns + c] = sum;
}

KERNEL merge(const A* part, T* out, long long parts, long long columns) {
    const long long c = own_index();
    if (c >= columns) return;
    double total = 0;
    for (long long i = 0; i < parts; i++) total += part[i * columns + c];
    out[c] = narrow<T>(A(total));
}
