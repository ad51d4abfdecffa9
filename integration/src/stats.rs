//! Is a share fair? Pearson's χ² against equal shares.

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
}
