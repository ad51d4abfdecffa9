//! Statistics: is a share fair (Pearson's χ² against equal shares), and quantiles.

/// χ² of `counts` against equal shares.
#[must_use]
pub fn chi_square(counts: &[u32]) -> f64 {
    let total: f64 = counts.iter().copied().map(f64::from).sum();
    let bins = u32::try_from(counts.len()).map_or(f64::INFINITY, f64::from);
    let expected = total / bins;
    counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum()
}

/// Probability that equal shares of three give this χ² or a larger one. With two degrees of freedom the
/// survival function is exactly e^(-χ²/2).
#[must_use]
pub fn p_of_three(chi_square: f64) -> f64 {
    (-chi_square / 2.0).exp()
}

/// The `q`-quantile of `values` (0: the least, 0.5: the median, 1: the greatest), linear between neighbours.
/// NaN of no values.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (mut below, mut place) =
        (f64::NAN, q * (f64::from(u32::try_from(sorted.len()).unwrap_or(u32::MAX)) - 1.0));
    for value in sorted {
        if place <= 0.0 {
            return if below.is_nan() { value } else { value + place * (value - below) };
        }
        below = value;
        place -= 1.0;
    }
    below
}

/// The median.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_agree() {
        // The 0.05 and 0.001 quantiles of χ² with two degrees of freedom.
        assert!((p_of_three(5.991) - 0.05).abs() < 1e-4);
        assert!((p_of_three(13.816) - 0.001).abs() < 1e-5);
        assert!((chi_square(&[1000, 1000, 1000])).abs() < 1e-12);
        assert!((chi_square(&[900, 1000, 1100]) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        close(median(&[3.0, 1.0, 2.0]), 2.0);
        close(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        close(median(&[7.0]), 7.0);
        close(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        close(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.9), 4.6);
        close(quantile(&[5.0, 1.0], 0.0), 1.0);
        close(quantile(&[5.0, 1.0], 1.0), 5.0);
        assert!(median(&[]).is_nan());
    }
}
