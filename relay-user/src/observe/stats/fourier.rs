//! Products of a series with every rotation of another, by way of the Fourier transform.

/// For each shift s below the length n: the sum over t of `x[t] * y[(t + s) % n]`. Takes time n log n. Of two lengths, the
/// shorter counts.
pub fn circular_products(x: &[f64], y: &[f64]) -> Vec<f64> {
    let n = x.len().min(y.len());
    if n == 0 {
        return Vec::new();
    }
    // Long enough that the transform's own rotation reaches only padding.
    let size = (2 * n).next_power_of_two();
    let padded = |values: &[f64]| {
        let mut points: Vec<Point> = values[..n].iter().map(|&re| Point { re, im: 0.0 }).collect();
        points.resize(size, Point::default());
        points
    };
    let (mut a, mut b) = (padded(x), padded(y));
    transform(&mut a);
    transform(&mut b);
    // The conjugate of both, so that transforming again is transforming back.
    for (a, b) in a.iter_mut().zip(&b) {
        *a = Point { re: a.re * b.re + a.im * b.im, im: -(a.re * b.im - a.im * b.re) };
    }
    transform(&mut a);
    let at = |shift: usize| a.get(shift).map_or(0.0, |point| point.re / size as f64);
    (0..n).map(|shift| at(shift) + if shift == 0 { 0.0 } else { at(size - n + shift) }).collect()
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    re: f64,
    im: f64,
}

/// Cooley and Tukey's transform in place; the length is a power of two.
fn transform(points: &mut [Point]) {
    let size = points.len();
    let mut mirrored = 0;
    for index in 1..size {
        let mut bit = size >> 1;
        while mirrored & bit != 0 {
            mirrored ^= bit;
            bit >>= 1;
        }
        mirrored |= bit;
        if index < mirrored {
            points.swap(index, mirrored);
        }
    }
    let mut length = 2;
    while length <= size {
        let half = length / 2;
        let turns: Vec<(f64, f64)> =
            (0..half).map(|k| (-std::f64::consts::TAU * k as f64 / length as f64).sin_cos()).collect();
        for part in points.chunks_exact_mut(length) {
            let (low, high) = part.split_at_mut(half);
            for ((low, high), &(sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                let turned = Point { re: high.re * cos - high.im * sin, im: high.re * sin + high.im * cos };
                *high = Point { re: low.re - turned.re, im: low.im - turned.im };
                *low = Point { re: low.re + turned.re, im: low.im + turned.im };
            }
        }
        length *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::normal;
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    #[test]
    fn products_are_those_of_the_sum() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in [1, 2, 3, 7, 8, 100, 257] {
            let x: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
            let y: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
            let products = circular_products(&x, &y);
            assert_eq!(products.len(), n);
            for (shift, product) in products.iter().enumerate() {
                let wanted: f64 = (0..n).map(|t| x[t] * y[(t + shift) % n]).sum();
                assert!((product - wanted).abs() < 1e-9, "{n} {shift}: {product} is not {wanted}");
            }
        }
        assert!(circular_products(&[], &[1.0]).is_empty());
    }
}
