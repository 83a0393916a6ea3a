// A table of rows. T: its type; VECTOR: 16 bytes at a time.
typedef Wide<T>::type A;
constexpr int PACK = VECTOR ? 16 / sizeof(T) : 1;

KERNEL take_rows(const T* table, const long long* indices, T* out, long long D) {
    const long long from = indices[blockIdx.x] * D, to = blockIdx.x * D;
    along_row<256, PACK>(D, [&](long long k) { store(out + to + k, load<PACK>(table + from + k)); });
}

// A block has one place of the sorted indices; the first of equal ones adds up all of their rows, in the order of g.
KERNEL add_rows(const T* g, const long long* sorted, const long long* order, T* out, long long skip, long long M,
                long long D) {
    const long long first = blockIdx.x, row = sorted[first];
    if (row == skip || (first && sorted[first - 1] == row)) return;
    along_row<256, PACK>(D, [&](long long k) {
        A sum[PACK] = {};
        for (long long i = first; i < M && sorted[i] == row; i++) {
            const auto v = load<PACK>(g + order[i] * D + k);
            for (int j = 0; j < PACK; j++) sum[j] += widen(v[j]);
        }
        Pack<T, PACK> rounded;
        for (int j = 0; j < PACK; j++) rounded[j] = narrow<T>(sum[j]);
        store(out + row * D + k, rounded);
    });
}
