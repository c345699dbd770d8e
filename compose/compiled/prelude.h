// What generated code is written in: vectors of W chains, with the arithmetic and the functions of torch.
//
// T, W, WIDE and LIBMVEC are defined by the including file: a V holds one number of each of W chains, and a U is as wide
// as the processor: WIDE numbers, which are R = WIDE / W entries of W chains each, as they follow each other in memory.
// Each lane is a chain of its own; nothing here mixes lanes. Functions take both, so that one expression serves entry by
// entry and, where V and M are redefined as U and Wide in a block, R entries at once.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int R = WIDE / W;
typedef T V __attribute__((vector_size(W * sizeof(T)), may_alias));
typedef T U __attribute__((vector_size(WIDE * sizeof(T)), may_alias));
// what comparisons give: −1 where they hold, 0 where they do not
typedef decltype(V{} < V{}) M;
typedef decltype(U{} < U{}) Wide;
typedef V Narrow;
typedef M NarrowM;
typedef U LooseU __attribute__((aligned(sizeof(T))));
typedef Wide LooseWide __attribute__((aligned(sizeof(T)), may_alias));

static inline V vec(V v) { return v; }
static inline V vec(T t) { return V{} + t; }
template <class X> static inline X as(X x) { return x; }
template <class X> static inline X as(T t) { return X{} + t; }

template <class N, class X> static inline X choose(N mask, X a, X b) { return mask ? a : b; }
template <class X, class N> static inline X number(N mask) { return mask ? X{} + T(1) : X{}; }

// ---------------------------------------------------------- R entries at once

static inline U load(const V* entries) { return *(const LooseU*)entries; }
static inline Wide load(const M* entries) { return *(const LooseWide*)entries; }
static inline void store(V* entries, U u) { *(LooseU*)entries = u; }
static inline void store(M* entries, Wide u) { *(LooseWide*)entries = u; }

// some bytes, as often as they fit
template <class X, class Y> static inline X again(Y y) {
    if constexpr (sizeof(X) == sizeof(Y)) {
        return (X)y;
    } else if constexpr (sizeof(Y) == 8) {
        typedef int64_t Words __attribute__((vector_size(sizeof(X))));
        int64_t word;
        std::memcpy(&word, &y, 8);
        return (X)(Words{} | word);
    } else {
        X x;
#if defined(__AVX512F__)
        if constexpr (sizeof(X) == 64 && sizeof(Y) == 32) return (X)_mm512_broadcast_i64x4((__m256i)y);
        if constexpr (sizeof(X) == 64 && sizeof(Y) == 16) return (X)_mm512_broadcast_i32x4((__m128i)y);
#endif
#if defined(__AVX2__)
        if constexpr (sizeof(X) == 32 && sizeof(Y) == 16) return (X)_mm256_broadcastsi128_si256((__m128i)y);
#endif
        for (unsigned i = 0; i < sizeof(X) / sizeof(Y); ++i) std::memcpy((char*)&x + i * sizeof(Y), &y, sizeof(Y));
        return x;
    }
}

// one entry for R, of numbers or truth values
template <class X, class Y> static inline X tile(Y y) { return again<X>(y); }

// entry I / W of numbers that start at Q, for lane I
template <int Q, int... I> static inline U stretched(U u, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(u, u, (I / W + Q)...);
}
template <int Q> static inline U stretch(U numbers) {
    return stretched<Q>(numbers, std::make_integer_sequence<int, WIDE>());
}
// R numbers that all chains share
static inline U expand(const T* numbers) {
    if constexpr (R == 1) {
        return U{} + *numbers;
    } else if constexpr (R == WIDE) {
        return *(const LooseU*)numbers;
    } else {
        typedef T Few __attribute__((vector_size(R * sizeof(T))));
        Few few;
        std::memcpy(&few, numbers, sizeof few);
        return stretch<0>(again<U>(few));
    }
}

// one of the R entries
template <class Y, class X> static inline Y part(const X& x, int k) {
    Y y;
    std::memcpy(&y, (const char*)&x + k * sizeof(Y), sizeof(Y));
    return y;
}

// ------------------------------------------- functions of the vector library

// One lane after another.
#define LANEWISE(name, function) \
    template <class X> static inline X name(X x) { \
        X r; \
        for (unsigned i = 0; i < sizeof(X) / sizeof(T); ++i) r[i] = T(function(x[i])); \
        return r; \
    }
#define LANEWISE2(name, function) \
    template <class X> static inline X name(X x, X y) { \
        X r; \
        for (unsigned i = 0; i < sizeof(X) / sizeof(T); ++i) r[i] = T(function(x[i], y[i])); \
        return r; \
    }

// LIBMVEC is 2 where glibc has vector versions of all, 1 where it has the older ones, 0 where it has none.
#if LIBMVEC && defined(__x86_64__)
typedef float F4 __attribute__((vector_size(16)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F16 __attribute__((vector_size(64)));
typedef double D2 __attribute__((vector_size(16)));
typedef double D4 __attribute__((vector_size(32)));
typedef double D8 __attribute__((vector_size(64)));
template <class X, class P, P (*FN)(P)> static inline X pieces(X x) {
    P p[sizeof(X) / sizeof(P)];
    std::memcpy(p, &x, sizeof(X));
    for (unsigned i = 0; i < sizeof(X) / sizeof(P); ++i) p[i] = FN(p[i]);
    std::memcpy(&x, p, sizeof(X));
    return x;
}
template <class X, class P, P (*FN)(P, P)> static inline X pieces(X x, X y) {
    P p[sizeof(X) / sizeof(P)], q[sizeof(X) / sizeof(P)];
    std::memcpy(p, &x, sizeof(X));
    std::memcpy(q, &y, sizeof(X));
    for (unsigned i = 0; i < sizeof(X) / sizeof(P); ++i) p[i] = FN(p[i], q[i]);
    std::memcpy(&x, p, sizeof(X));
    return x;
}
#if SINGLE
#define P16 F4
#define P32 F8
#define P64 F16
#define LIBM(isa, count, twice, args, name) _ZGV##isa##N##count##args##_##name##f
#else
#define P16 D2
#define P32 D4
#define P64 D8
#define LIBM(isa, count, twice, args, f) _ZGV##isa##N##twice##args##_##f
#endif
#if defined(__AVX512F__)
#define WIDEST(args, f, ...) if constexpr (sizeof(X) >= 64) return pieces<X, P64, LIBM(e, 16, 8, args, f)>(__VA_ARGS__); else
#define DECLARE_WIDEST(args, f, ...) extern "C" P64 LIBM(e, 16, 8, args, f)(__VA_ARGS__) noexcept;
#else
#define WIDEST(args, f, ...)
#define DECLARE_WIDEST(args, f, ...)
#endif
#if defined(__AVX2__)
#define WIDER(args, f, ...) if constexpr (sizeof(X) >= 32) return pieces<X, P32, LIBM(d, 8, 4, args, f)>(__VA_ARGS__); else
#define DECLARE_WIDER(args, f, ...) extern "C" P32 LIBM(d, 8, 4, args, f)(__VA_ARGS__) noexcept;
#else
#define WIDER(args, f, ...)
#define DECLARE_WIDER(args, f, ...)
#endif
#define MVEC(name, f) \
    extern "C" P16 LIBM(b, 4, 2, v, f)(P16) noexcept; \
    DECLARE_WIDER(v, f, P32) \
    DECLARE_WIDEST(v, f, P64) \
    template <class X> static inline X name(X x) { \
        WIDEST(v, f, x) WIDER(v, f, x) return pieces<X, P16, LIBM(b, 4, 2, v, f)>(x); \
    }
#define MVEC2(name, f) \
    extern "C" P16 LIBM(b, 4, 2, vv, f)(P16, P16) noexcept; \
    DECLARE_WIDER(vv, f, P32, P32) \
    DECLARE_WIDEST(vv, f, P64, P64) \
    template <class X> static inline X name(X x, X y) { \
        WIDEST(vv, f, x, y) WIDER(vv, f, x, y) return pieces<X, P16, LIBM(b, 4, 2, vv, f)>(x, y); \
    }
#else
#define MVEC(name, f) LANEWISE(name, std::f)
#define MVEC2(name, f) LANEWISE2(name, std::f)
#endif
#if LIBMVEC > 1
#define MVEC_NEW(name, f) MVEC(name, f)
#define MVEC2_NEW(name, f) MVEC2(name, f)
#else
#define MVEC_NEW(name, f) LANEWISE(name, std::f)
#define MVEC2_NEW(name, f) LANEWISE2(name, std::f)
#endif

MVEC(v_exp, exp)
MVEC(v_log, log)
MVEC(v_sin, sin)
MVEC(v_cos, cos)
MVEC2(v_pow, pow)
MVEC_NEW(v_log1p, log1p)
MVEC_NEW(v_expm1, expm1)
MVEC_NEW(v_tanh, tanh)
MVEC_NEW(v_tan, tan)
MVEC_NEW(v_erf, erf)
MVEC_NEW(v_erfc, erfc)
MVEC_NEW(v_sinh, sinh)
MVEC_NEW(v_cosh, cosh)
MVEC_NEW(v_asin, asin)
MVEC_NEW(v_acos, acos)
MVEC_NEW(v_atan, atan)
MVEC_NEW(v_asinh, asinh)
MVEC_NEW(v_acosh, acosh)
MVEC_NEW(v_atanh, atanh)
MVEC2_NEW(v_atan2, atan2)
MVEC2_NEW(v_hypot, hypot)

// ----------------------------------------------------- functions of one lane

static inline double lgamma_of(double x) { return std::lgamma(x); }

// ψ: recurrence to where its asymptotic series holds, reflection for negative numbers
static double digamma_of(double x) {
    if (x == 0) return std::copysign(INFINITY, -x);
    double sum = 0;
    if (x < 0) {
        if (x == std::floor(x)) return NAN;
        double fraction = x - std::floor(x);
        sum = -M_PI / std::tan(M_PI * fraction);
        x = 1 - x;
    }
    for (; x < 10; ++x) sum -= 1 / x;
    double y = 1 / (x * x);
    double series = y * (1. / 12 - y * (1. / 120 - y * (1. / 252 - y * (1. / 240 - y * (1. / 132 - y * 691. / 32760)))));
    return sum + std::log(x) - 0.5 / x - series;
}

// ψ′ likewise
static double trigamma_of(double x) {
    double sum = 0, sign = 1;
    if (x < 0.5) {
        double s = std::sin(M_PI * x);
        sum = -M_PI * M_PI / (s * s);
        sign = -1;
        x = 1 - x;
    }
    for (; x < 10; ++x) sum += 1 / (x * x);
    double y = 1 / (x * x);
    double series = (1 + 0.5 / x + y * (1. / 6 - y * (1. / 30 - y * (1. / 42 - y * (1. / 30 - y * 5. / 66))))) / x;
    return sign * (sum + series);
}

// exp(x²) erfc(x); its continued fraction where erfc underflows
static double erfcx_of(double x) {
    if (x < 20) return x < -27 ? INFINITY : std::exp(x * x) * std::erfc(x);
    double y = 0.5 / (x * x);
    return (1 - y * (1 - 3 * y * (1 - 5 * y))) / (x * 1.7724538509055160273);
}

// The x with erfc(x) = 2 tail, for tails up to a half: Halley's method from Hastings' rational formula
static double upper_quantile(double tail) {
    if (tail == 0) return INFINITY;
    double t = std::sqrt(-2 * std::log(tail));
    double x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    x *= M_SQRT1_2;
    for (int i = 0; i < 3; ++i) {
        double step = (2 * tail - std::erfc(x)) * 0.88622692545275801365 * std::exp(x * x);
        x -= step / (1 + x * step);
    }
    return x;
}
static double erfinv_of(double p) {
    if (!(std::fabs(p) <= 1)) return NAN;
    if (std::fabs(p) > 0.01) return std::copysign(upper_quantile((1 - std::fabs(p)) / 2), p);
    double y = p * 0.88622692545275801365, z = y * y;  // its series at 0
    return y * (1 + z * (1. / 3 + z * (7. / 30 + z * (127. / 630 + z * 4369. / 22680))));
}
static double ndtri_of(double p) {
    if (!(p >= 0 && p <= 1)) return NAN;
    return M_SQRT2 * (p < 0.5 ? -upper_quantile(p) : upper_quantile(1 - p));
}

LANEWISE(v_lgamma, lgamma_of)
LANEWISE(v_digamma, digamma_of)
LANEWISE(v_trigamma, trigamma_of)
LANEWISE(v_erfcx, erfcx_of)
LANEWISE(v_erfinv, erfinv_of)
LANEWISE(v_ndtri, ndtri_of)
LANEWISE(v_floor, std::floor)
LANEWISE(v_ceil, std::ceil)
LANEWISE(v_round, std::nearbyint)
LANEWISE(v_trunc, std::trunc)
LANEWISE(v_sqrt, std::sqrt)
LANEWISE2(v_fmod, std::fmod)
LANEWISE2(v_copysign, std::copysign)

template <class X> static inline X v_abs(X x) {
    typedef typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type Word;
    typedef Word Words __attribute__((vector_size(sizeof(X))));
    return (X)((Words)x & (~Word(0) >> 1));
}
template <class X> static inline X v_sign(X x) { return choose(x > T(0), X{} + T(1), choose(x < T(0), X{} - T(1), X{})); }
template <class X> static inline X v_sigmoid(X x) { return T(1) / (T(1) + v_exp(-x)); }
// NaN on either side is the result
template <class X> static inline X v_max(X a, X b) { return choose(a != a, a, choose(b != b, b, choose(a > b, a, b))); }
template <class X> static inline X v_min(X a, X b) { return choose(a != a, a, choose(b != b, b, choose(a < b, a, b))); }
// log(eᵃ + eᵇ), also where both are −∞
template <class X> static inline X v_logaddexp(X a, X b) {
    X high = v_max(a, b), low = v_min(a, b);
    return choose(low == high, high + T(0.69314718055994531), high + v_log1p(v_exp(low - high)));
}
// of the divisor's sign
template <class X> static inline X v_remainder(X a, X b) {
    X r = v_fmod(a, b);
    return choose((r != T(0)) & ((b < T(0)) != (r < T(0))), r + b, r);
}
template <class X> static inline auto m_isnan(X x) { return x != x; }
template <class X> static inline auto m_isinf(X x) { return v_abs(x) == T(INFINITY); }
template <class X> static inline auto m_isfinite(X x) { return x - x == T(0); }

// ------------------------------------------------------------ rows to lanes

template <int H, int... I> static inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
    V upper = __builtin_shufflevector(a, b, (I & H ? W + I - H : I)...);
    b = __builtin_shufflevector(a, b, (I & H ? W + I : I + H)...);
    a = upper;
}
// swap blocks off the diagonal, of half the size each time
template <int H> static inline void transposed(V* block) {
    if constexpr (H > 0) {
#pragma GCC unroll 64
        for (int i = 0; i < W; ++i)
            if (!(i & H)) exchange<H>(block[i], block[i + H], std::make_integer_sequence<int, W>());
        transposed<H / 2>(block);
    }
}
// Have rows g, ..., g + W - 1 of a matrix (n, SIZE) on their way to the cache, to be read or, with WRITE, written to.
template <int SIZE, int WRITE, typename E> static inline void fetch(const E* rows, long g, long n) {
    const char *first = (const char*)(rows + g * SIZE), *last = (const char*)(rows + (g + W < n ? g + W : n) * SIZE);
    for (; first < last; first += 64) __builtin_prefetch(first, WRITE);
}
// Rows g, ..., g + W - 1 of a matrix (n, SIZE), the last one for those beyond, to SIZE vectors.
template <int SIZE> static inline void gather(V* to, const T* from, long g, long n) {
    const T* rows[W];
    for (int l = 0; l < W; ++l) rows[l] = from + (g + l < n ? g + l : n - 1) * SIZE;
    if constexpr (SIZE == 1) {
        if (g + W <= n) {
            std::memcpy(to, from + g, sizeof(V));
            return;
        }
    }
    for (int i = 0; i + W <= SIZE; i += W) {
        V block[W];
#pragma GCC unroll 64
        for (int l = 0; l < W; ++l) std::memcpy(&block[l], rows[l] + i, sizeof(V));
        transposed<W / 2>(block);
#pragma GCC unroll 64
        for (int l = 0; l < W; ++l) to[i + l] = block[l];
    }
    if constexpr (SIZE >= W && SIZE % W != 0) {  // the last W entries, some of them again
        V block[W];
#pragma GCC unroll 64
        for (int l = 0; l < W; ++l) std::memcpy(&block[l], rows[l] + (SIZE - W), sizeof(V));
        transposed<W / 2>(block);
#pragma GCC unroll 64
        for (int l = 0; l < W; ++l) to[SIZE - W + l] = block[l];
    } else if constexpr (SIZE < W) {
        for (int i = 0; i < SIZE; ++i) {
            V v;
#pragma GCC unroll 64
            for (int l = 0; l < W; ++l) v[l] = rows[l][i];
            to[i] = v;
        }
    }
}
// And back; rows beyond the matrix are left out.
template <int SIZE, typename E> static inline void scatter(const V* from, E* to, long g, long n) {
    if constexpr (std::is_same<E, T>::value) {
        if (SIZE == 1 && g + W <= n) {
            std::memcpy(to + g, from, sizeof(V));
            return;
        }
        if constexpr (SIZE >= W) {
            for (int i = 0; i < SIZE; i += W) {
                int begin = i + W <= SIZE ? i : SIZE - W;
                V block[W];
#pragma GCC unroll 64
                for (int l = 0; l < W; ++l) block[l] = from[begin + l];
                transposed<W / 2>(block);
                if (g + W <= n) {
#pragma GCC unroll 64
                    for (int l = 0; l < W; ++l) std::memcpy(to + (g + l) * SIZE + begin, &block[l], sizeof(V));
                } else {
                    for (int l = 0; g + l < n; ++l) std::memcpy(to + (g + l) * SIZE + begin, &block[l], sizeof(V));
                }
            }
            return;
        }
    }
    for (int l = 0; l < W && g + l < n; ++l)
        for (int i = 0; i < SIZE; ++i) to[(g + l) * SIZE + i] = E(from[i][l]);
}
template <int SIZE, typename E> static inline void scatter(const M* from, E* to, long g, long n) {
    for (int l = 0; l < W && g + l < n; ++l)
        for (int i = 0; i < SIZE; ++i) to[(g + l) * SIZE + i] = E(from[i][l]);
}
