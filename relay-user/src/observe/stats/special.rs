//! Laws whose tails give p-values.

use super::interval::Z;

/// How likely chi-square with `freedom` degrees (1 or more) is to reach `value`.
pub fn chi_square_p(value: f64, freedom: u32) -> f64 {
    if value.is_nan() {
        return f64::NAN;
    }
    gamma_upper(f64::from(freedom.max(1)) / 2.0, value.max(0.0) / 2.0)
}

/// How likely a normal draw (mean 0, variance 1) is to lie below `z`.
pub fn normal_p(z: f64) -> f64 {
    let tail = gamma_upper(0.5, z * z / 2.0) / 2.0;
    if z < 0.0 { tail } else { 1.0 - tail }
}

/// How likely the greatest distance between an empirical distribution of `n` independent draws and their law is to
/// reach `distance`. Of two samples of a and b draws, `n` is ab / (a + b). Stephens' approximation: good from n = 5.
pub fn kolmogorov_p(distance: f64, n: f64) -> f64 {
    let root = n.sqrt();
    let scaled = (root + 0.12 + 0.11 / root) * distance;
    // Below, the alternating sum needs ever more terms, and is 1 to within 1e-7 anyway.
    if scaled < 0.25 {
        return 1.0;
    }
    let mut sum = 0.0;
    let mut sign = 1.0;
    for k in 1..=20 {
        sum += sign * (-2.0 * (f64::from(k) * scaled).powi(2)).exp();
        sign = -sign;
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

/// What 97.5 % of draws from Student's t with `freedom` degrees (1 or more) lie below.
pub(super) fn student_quantile(freedom: usize) -> f64 {
    match freedom {
        0 | 1 => 12.706_204_7,
        2 => 4.302_652_7,
        3 => 3.182_446_3,
        4 => 2.776_445_1,
        // Cornish and Fisher's expansion, right to 0.2 % from 5 degrees.
        _ => {
            let n = freedom as f64;
            let first = (Z.powi(3) + Z) / (4.0 * n);
            let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * n * n);
            let third =
                (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / (384.0 * n.powi(3));
            Z + first + second + third
        }
    }
}

/// The upper regularised incomplete gamma function Q(a, x), for a > 0 and x >= 0.
fn gamma_upper(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    if x.is_infinite() {
        return 0.0;
    }
    let scale = (a * x.ln() - x - ln_gamma(a)).exp();
    // Each form converges on its side of a + 1, within a number of terms that grows with the root of a.
    if x < a + 1.0 { 1.0 - scale * lower_series(a, x) } else { scale * upper_fraction(a, x) }
}

const TERMS: u32 = 10_000;

fn lower_series(a: f64, x: f64) -> f64 {
    let mut term = 1.0 / a;
    let mut sum = term;
    for k in 1..TERMS {
        term *= x / (a + f64::from(k));
        sum += term;
        if term < sum * 1e-16 {
            break;
        }
    }
    sum
}

/// Lentz's way through the continued fraction.
fn upper_fraction(a: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / TINY;
    let mut d = 1.0 / b;
    let mut product = d;
    for k in 1..TERMS {
        let k = f64::from(k);
        let numerator = -k * (k - a);
        b += 2.0;
        d = numerator * d + b;
        d = 1.0 / if d.abs() < TINY { TINY } else { d };
        c = b + numerator / c;
        c = if c.abs() < TINY { TINY } else { c };
        product *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    product
}

/// The logarithm of the gamma function for a > 0: Stirling's series, from where its terms fall fast enough.
fn ln_gamma(a: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = a;
    while x < 10.0 {
        shift += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = (1.0 / 12.0
        - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse * (1.0 / 1680.0 - inverse / 1188.0))))
        / x;
    (x - 0.5) * x.ln() - x + std::f64::consts::TAU.ln() / 2.0 + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, wanted: f64, tolerance: f64) {
        assert!((got - wanted).abs() <= tolerance * wanted.abs(), "{got} is not {wanted}");
    }

    #[test]
    fn chi_square_is_the_tables() {
        close(chi_square_p(3.841_458_820_694_124, 1), 0.05, 1e-9);
        close(chi_square_p(18.307_038_053_275_146, 10), 0.05, 1e-9);
        close(chi_square_p(293.247_835_080_7, 255), 0.05, 1e-8);
        // With two degrees the tail is exp(-x/2).
        for x in [0.1, 1.0, 2.9, 3.1, 10.0, 200.0] {
            close(chi_square_p(x, 2), (-x / 2.0).exp(), 1e-11);
        }
        assert_eq!(chi_square_p(0.0, 5), 1.0);
        assert!(chi_square_p(f64::NAN, 5).is_nan());
        assert_eq!(chi_square_p(1e9, 255), 0.0);
    }

    #[test]
    fn normal_is_the_tables() {
        close(normal_p(-1.959_963_984_540_054), 0.025, 1e-12);
        close(normal_p(1.0), 0.841_344_746_068_543, 1e-12);
        close(normal_p(-6.0), 9.865_876_450_377e-10, 1e-9);
        assert_eq!(normal_p(0.0), 0.5);
    }

    #[test]
    fn kolmogorov_is_the_tables() {
        // The limit's 5 % and 1 % points.
        close(kolmogorov_p(1.358_098_6 / 1000.0, 1e6), 0.05, 2e-3);
        close(kolmogorov_p(1.627_623_6 / 1000.0, 1e6), 0.01, 2e-3);
        // The 5 % point of 20 draws: 0.294.
        close(kolmogorov_p(0.294, 20.0), 0.05, 0.03);
        assert_eq!(kolmogorov_p(0.0, 100.0), 1.0);
    }

    #[test]
    fn student_is_the_tables() {
        for (freedom, wanted) in [
            (1, 12.706_2),
            (3, 3.182_4),
            (4, 2.776_4),
            (5, 2.570_6),
            (9, 2.262_2),
            (30, 2.042_3),
            (1000, 1.962_3),
        ] {
            close(student_quantile(freedom), wanted, 2e-3);
        }
    }
}
