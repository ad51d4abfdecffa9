//! The order of measurements, and what becomes of them.
//!
//! In each round every subject is measured once. Rounds begin with another subject each and run in turn
//! forwards and backwards, so that nobody always follows the same other.

use anyhow::{Context as _, Result};
use netd_integration::stats;

/// The measurements of one subject, one for each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    pub(crate) fn median(&self) -> f64 {
        stats::median(&self.0)
    }

    /// Half the distance between the quartiles, as a share of the median: how far rounds lie apart.
    pub(crate) fn spread(&self) -> f64 {
        (stats::quantile(&self.0, 0.75) - stats::quantile(&self.0, 0.25)) / 2.0 / self.median()
    }

    /// Median of the ratios to another subject within each round.
    pub(crate) fn ratio(&self, to: &Self) -> f64 {
        let ratios: Vec<f64> = self.0.iter().zip(&to.0).map(|(mine, other)| mine / other).collect();
        stats::median(&ratios)
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// In which order `count` subjects are measured in a round: of two rounds the second is the first backwards, and
/// the next two begin one further.
pub(crate) fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|i| (i + round / 2) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Measures every subject once in each round.
///
/// # Errors
/// The first that a measurement has.
pub(crate) fn interleave<S>(
    rounds: usize,
    subjects: &[S],
    mut measure: impl FnMut(&S) -> Result<f64>,
) -> Result<Vec<Series>> {
    let mut all = vec![Series::default(); subjects.len()];
    for round in 0..rounds {
        for i in order(subjects.len(), round) {
            let (subject, series) =
                subjects.get(i).zip(all.get_mut(i)).context("a subject that there is not")?;
            series.push(measure(subject)?);
        }
    }
    Ok(all)
}
