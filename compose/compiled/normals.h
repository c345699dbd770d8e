// The numbers of torch.rand and torch.randn on the CPU, many at once: Mersenne twister and Box–Muller in vectors.
//
// Included after the prelude. A number of type T takes WORDS words of 32 bits: the lowest 24 or 53 bits of them, the
// first word the higher, are U in [0, 1). Normals come in groups of 16: with U_j and U_{j + 8}, j < 8, the numbers
//
//     sqrt(-2 log(1 - U_j)) cos(2 π U_{j + 8})  and  sqrt(-2 log(1 - U_j)) sin(2 π U_{j + 8}),
//
// and where their count is no multiple of 16 the last 16 are made of fresh numbers.

// -------------------------------------------------------- the Mersenne twister

// What torch.Generator.get_state() begins with.
struct Twister {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next, words[624];
};

constexpr int WORDS = sizeof(T) / 4, PERIOD = 624, SHIFT = 397, LONG = WIDE * WORDS;
typedef uint32_t Long __attribute__((vector_size(LONG * 4)));
typedef uint32_t LooseLong __attribute__((vector_size(LONG * 4), aligned(4), may_alias));

template <class X> static inline X twisted(X here, X after, X far) {
    X y = (here & 0x80000000u) | (after & 0x7fffffffu);
    return far ^ (y >> 1) ^ ((X{} - (y & 1)) & 0x9908b0dfu);
}
template <class X> static inline X tempered(X y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

// Matsumoto and Nishimura (1998); a word depends on none of the LONG before it.
struct Stream {
    uint32_t state[PERIOD];
    int next;

    void renew_from(int begin, int end, int far) {
        int i = begin;
        for (; i + LONG <= end; i += LONG)
            *(LooseLong*)(state + i) = twisted<Long>(*(LooseLong*)(state + i), *(LooseLong*)(state + i + 1),
                                                     *(LooseLong*)(state + i + far));
        for (; i < end; ++i) state[i] = twisted<uint32_t>(state[i], state[(i + 1) % PERIOD], state[i + far]);
    }
    void draw(uint32_t* to, long count) {
        while (count > 0) {
            if (next == PERIOD) {
                renew_from(0, PERIOD - SHIFT, SHIFT);
                renew_from(PERIOD - SHIFT, PERIOD - 1, SHIFT - PERIOD);
                renew_from(PERIOD - 1, PERIOD, SHIFT - PERIOD);
                next = 0;
            }
            long k = count < PERIOD - next ? count : PERIOD - next, i = 0;
            for (; i + LONG <= k; i += LONG) *(LooseLong*)(to + i) = tempered<Long>(*(LooseLong*)(state + next + i));
            for (; i < k; ++i) to[i] = tempered(state[next + i]);
            to += k, count -= k, next += k;
        }
    }
};

// ------------------------------------------------------------------- functions

typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type Int;
typedef Int Ints __attribute__((vector_size(WIDE * sizeof(T))));
constexpr int BITS = sizeof(T) == 4 ? 23 : 52;
constexpr T PI = T(3.14159265358979323846);

// Σ c_k x^k for k < COUNT
template <int COUNT> static inline U series(U x, const T* c) {
    U sum = U{} + c[COUNT - 1];
#pragma GCC unroll 16
    for (int k = COUNT - 2; k >= 0; --k) sum = sum * x + c[k];
    return sum;
}

// log x of 0 < x ≤ 1: with x = m 2^e, sqrt(1/2) ≤ m < sqrt(2), and s = (m - 1) / (m + 1), 2 artanh s + e log 2
static inline U logarithm(U x) {
    constexpr T c[] = {T(2), T(2. / 3), T(2. / 5), T(2. / 7), T(2. / 9), T(2. / 11), T(2. / 13), T(2. / 15),
                       T(2. / 17), T(2. / 19), T(2. / 21)};
    constexpr Int half = sizeof(T) == 4 ? Int(0x3f3504f3) : Int(0x3fe6a09e667f3bcd);
    Ints bits = (Ints)x - half;
    U e = __builtin_convertvector(bits >> BITS, U);
    U m = (U)((bits & ((Int(1) << BITS) - 1)) + half);
    U s = (m - T(1)) / (m + T(1));
    return e * T(0.69314718055994531) + s * series<sizeof(T) == 4 ? 5 : 11>(s * s, c);
}

// cos 2πx and sin 2πx of 0 ≤ x < 1, from the nearest quarter of a turn
static inline void turned(U x, U& cosine, U& sine) {
    constexpr T s[] = {T(1), T(-1. / 6), T(1. / 120), T(-1. / 5040), T(1. / 362880), T(-1. / 39916800),
                       T(1. / 6227020800), T(-1. / 1307674368000)};
    constexpr T c[] = {T(1), T(-1. / 2), T(1. / 24), T(-1. / 720), T(1. / 40320), T(-1. / 3628800), T(1. / 479001600),
                       T(-1. / 87178291200), T(1. / 20922789888000)};
    const T round = T(1.5) * T(Int(1) << BITS);
    U shifted = x * T(4) + round;
    Ints quarter = (Ints)shifted;
    U angle = (x * T(4) - (shifted - round)) * (PI / 2), square = angle * angle;
    U a = series<sizeof(T) == 4 ? 6 : 9>(square, c), b = angle * series<sizeof(T) == 4 ? 5 : 8>(square, s);
    constexpr int up = sizeof(T) * 8 - 2;
    Ints odd = -(quarter & 1);
    cosine = (U)(((odd & (Ints)b) | (~odd & (Ints)a)) ^ (((quarter + 1) & 2) << up));
    sine = (U)(((odd & (Ints)a) | (~odd & (Ints)b)) ^ ((quarter & 2) << up));
}

// --------------------------------------------------------------------- numbers

static inline U root(U x) {
    U r;
    for (int i = 0; i < WIDE; ++i) r[i] = std::sqrt(x[i]);
    return r;
}

static void uniforms(Stream& stream, T* to, long count) {
    constexpr int MANY = 512;
    constexpr T unit = sizeof(T) == 4 ? T(0x1p-24) : T(0x1p-53);
    alignas(64) uint32_t words[MANY * WORDS];
    for (long begin = 0; begin < count; begin += MANY) {
        long k = count - begin < MANY ? count - begin : MANY, i = 0;
        stream.draw(words, k * WORDS);
        if constexpr (WORDS == 1) {
            for (; i + WIDE <= k; i += WIDE)
                *(LooseU*)(to + begin + i) = __builtin_convertvector(*(Ints*)(words + i) & 0xffffff, U) * unit;
        }
        for (; i < k; ++i) {
            if constexpr (WORDS == 1) to[begin + i] = T(words[i] & 0xffffff) * unit;
            else to[begin + i] = T(Int(uint64_t(words[2 * i] & 0x1fffff) << 32 | words[2 * i + 1])) * unit;
        }
    }
}

// Numbers of one group or of two, PIECE at each place.
constexpr int PIECE = WIDE < 8 ? WIDE : 8, PIECES = WIDE / PIECE;
typedef T Piece __attribute__((vector_size(PIECE * sizeof(T))));
typedef Piece LoosePiece __attribute__((aligned(sizeof(T)), may_alias));

template <int... I> static inline U joined(Piece a, Piece b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, I...);
}
template <int FIRST, int... I> static inline Piece some(U u, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(u, u, (FIRST + I)...);
}
static inline U take(const T* a, const T* b) {
    if constexpr (PIECES == 1) return *(const LooseU*)a;
    else return joined(*(const LoosePiece*)a, *(const LoosePiece*)b, std::make_integer_sequence<int, WIDE>());
}
static inline void put(T* a, T* b, U u) {
    *(LoosePiece*)a = some<0>(u, std::make_integer_sequence<int, PIECE>());
    if constexpr (PIECES == 2) *(LoosePiece*)b = some<PIECE>(u, std::make_integer_sequence<int, PIECE>());
}

// Groups of 16 uniforms to normals, in place; WIDE pairs at once.
static void normals_of(T* at, long groups) {
    static_assert(PIECES <= 2);
    for (long pair = 0; pair < groups * 8; pair += WIDE) {
        T* a = at + pair / 8 * 16 + pair % 8;
        T* b = pair + PIECE < groups * 8 ? a + 16 : a;  // an odd group is done twice
        U cosine, sine, radius = root(T(-2) * logarithm(T(1) - take(a, b)));
        turned(take(a + 8, b + 8), cosine, sine);
        put(a, b, cosine * radius);
        put(a + 8, b + 8, sine * radius);
    }
}

static void normals(Stream& stream, T* to, long count) {
    constexpr long MANY = 512;
    for (long begin = 0; begin < count; begin += MANY) {
        long k = count - begin < MANY ? count - begin : MANY;
        uniforms(stream, to + begin, k);
        normals_of(to + begin, k / 16);
    }
    if (count % 16) {
        uniforms(stream, to + count - 16, 16);
        normals_of(to + count - 16, 1);
    }
}

// Normals, at least 16 of them, and then uniforms; the generator's state is left as torch would leave it.
extern "C" void draw(Twister* generator, T* normal, long count, T* uniform, long others) {
    Stream stream;
    for (int i = 0; i < PERIOD; ++i) stream.state[i] = uint32_t(generator->words[i]);
    stream.next = generator->left == 1 ? PERIOD : int(generator->next);
    normals(stream, normal, count);
    uniforms(stream, uniform, others);
    for (int i = 0; i < PERIOD; ++i) generator->words[i] = stream.state[i];
    generator->next = stream.next;
    generator->left = PERIOD + 1 - stream.next;
}
