//! Statistics to compare two lists of times taken on a noisy machine.

/// Number of resamplings: more would not change the printed digits.
const ROUNDS: usize = 2000;
/// Most boots whose regroupings are enumerated completely.
const ENUMERATED: usize = 14;
/// Fixed, so that the same times give the same results.
const SEED: u64 = 20_261_124;

/// Median, minimum and maximum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two middle values.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

/// Returns the spread of at least one time.
pub fn spread(times: &[f64]) -> Option<Spread> {
    let mut sorted = times.to_vec();
    let median = median(&mut sorted)?;
    Some(Spread { median, min: *sorted.first()?, max: *sorted.last()? })
}

fn median(times: &mut [f64]) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let upper = *times.get(middle)?;
    Some(if times.len() % 2 == 1 { upper } else { (times[middle - 1] + upper) / 2.0 })
}

/// Ratio of the times of the second VMM to those of the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Ratio of the medians.
    pub ratio: f64,
    /// Lower end of the 95 % interval (percentile bootstrap).
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Share of regroupings of all boots that are as far apart (two-sided permutation test).
    pub p: f64,
}

/// Compares the medians of two VMMs, each a list of boots, each a list of times. Whole boots are
/// resampled and regrouped, because updates of the same boot are not independent. Returns none
/// unless both have at least one time.
pub fn ratio(first: &[Vec<f64>], second: &[Vec<f64>]) -> Option<Ratio> {
    let medians = |one: &[&Vec<f64>], two: &[&Vec<f64>]| Some((pooled(one)?, pooled(two)?));
    let (first, second): (Vec<_>, Vec<_>) = (first.iter().collect(), second.iter().collect());
    let (one, two) = medians(&first, &second)?;
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut again = |boots: &[&'_ Vec<f64>]| -> Vec<f64> {
        let chosen = (0..boots.len()).map(|_| boots[random.usize(..boots.len())]);
        chosen.flatten().copied().collect()
    };
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .filter_map(|_| Some((median(&mut again(&second))?) / median(&mut again(&first))?))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (ratios.len() - 1) as f64).round() as usize).copied();

    Some(Ratio {
        ratio: two / one,
        low: at(0.025)?,
        high: at(0.975)?,
        p: regrouped(&first, &second),
    })
}

/// Returns the share of regroupings of whole boots whose means of the logarithms of the times are
/// as far apart: of all regroupings if there are few, else of a random sample. (Means rather than
/// medians: with five and five boots, medians are as far apart in many regroupings.)
fn regrouped(first: &[&Vec<f64>], second: &[&Vec<f64>]) -> f64 {
    let level = |boot: &&Vec<f64>| {
        boot.iter().map(|time| time.max(f64::MIN_POSITIVE).ln()).sum::<f64>() / boot.len() as f64
    };
    let mut levels: Vec<f64> = first.iter().chain(second).map(level).collect();
    let (here, sum) = (first.len(), levels.iter().sum::<f64>());
    let there = levels.len() - here;
    let apart = |chosen: f64| (chosen / here as f64 - (sum - chosen) / there as f64).abs();
    // Floating-point sums depend on the order in the last bits.
    let seen = apart(levels[..here].iter().sum()) * (1.0 - 1e-9) - f64::EPSILON;
    if levels.len() <= ENUMERATED {
        let chosen = |set: &u32| set.count_ones() as usize == here;
        let sum_of = |set: u32| {
            let of = levels.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
            of.map(|(_, level)| level).sum::<f64>()
        };
        let (mut all, mut far) = (0_u32, 0_u32);
        for set in (0..1 << levels.len()).filter(chosen) {
            all += 1;
            far += u32::from(apart(sum_of(set)) >= seen);
        }
        return f64::from(far) / f64::from(all);
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let far = (0..ROUNDS).filter(|_| {
        random.shuffle(&mut levels);
        apart(levels[..here].iter().sum()) >= seen
    });
    // The observed grouping counts too, so the result is never zero.
    (far.count() + 1) as f64 / (ROUNDS + 1) as f64
}

fn pooled(boots: &[&Vec<f64>]) -> Option<f64> {
    median(&mut boots.iter().copied().flatten().copied().collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[3.0, 1.0, 2.0], 2.0, 1.0, 3.0)]
    #[case(&[4.0, 1.0, 2.0, 3.0], 2.5, 1.0, 4.0)]
    #[case(&[7.0], 7.0, 7.0, 7.0)]
    fn spreads(#[case] times: &[f64], #[case] median: f64, #[case] min: f64, #[case] max: f64) {
        assert_eq!(spread(times), Some(Spread { median, min, max }));
    }

    #[test]
    fn no_times_have_no_statistics() {
        assert_eq!(spread(&[]), None);
        assert_eq!(ratio(&[], &[vec![1.0]]), None);
        assert_eq!(ratio(&[vec![1.0]], &[]), None);
    }

    #[test]
    fn a_clear_ratio_is_clear() {
        let first: Vec<Vec<f64>> = (0..20).map(|i| vec![1.0 + f64::from(i) / 100.0; 3]).collect();
        let second: Vec<Vec<f64>> =
            first.iter().map(|boot| boot.iter().map(|time| time * 3.0).collect()).collect();
        let seen = ratio(&first, &second).unwrap();
        assert!((seen.ratio - 3.0).abs() < 1e-9, "{seen:?}");
        assert!(seen.low > 2.7 && seen.high < 3.3 && seen.low <= seen.ratio, "{seen:?}");
        assert!(seen.p < 0.001, "{seen:?}");
    }

    #[test]
    fn two_boots_prove_little_even_with_many_updates() {
        let boots = |time: f64| vec![vec![time; 50]; 2];
        let seen = ratio(&boots(1.0), &boots(3.0)).unwrap();
        assert!(seen.p > 0.2, "{seen:?}");
    }

    #[test]
    fn five_and_five_boots_can_show_a_difference() {
        let boots =
            |from: f64| (0..5).map(|i| vec![from + f64::from(i) / 10.0]).collect::<Vec<_>>();
        let seen = ratio(&boots(1.0), &boots(2.0)).unwrap();
        assert!((seen.p - 2.0 / 252.0).abs() < 1e-9, "{seen:?}");
        let mixed = ratio(&boots(1.0), &boots(1.1)).unwrap();
        assert!(mixed.p > 0.1, "{mixed:?}");
    }

    #[test]
    fn equal_times_are_no_difference() {
        let times: Vec<Vec<f64>> = (0..20).map(f64::from).map(|i| vec![i + 1.0]).collect();
        let seen = ratio(&times, &times).unwrap();
        assert_eq!((seen.ratio, seen.p), (1.0, 1.0));
        assert!(seen.low < 1.0 && seen.high > 1.0, "{seen:?}");
    }
}
