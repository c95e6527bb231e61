//! Reproducible pseudo-random numbers.

use fastrand::Rng;

#[derive(Clone, Debug)]
pub(super) struct Draw(Rng);

impl Draw {
    pub(super) fn new(number: u64) -> Self {
        Self(Rng::with_seed(number))
    }

    /// Draws a number below `bound`; 0 if there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound.max(1))
    }

    /// Returns the numbers below `bound`, beginning at any of them.
    pub(super) fn all_below(&mut self, bound: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.below(bound);
        (0..bound).map(move |number| (first + number) % bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_always_draws_the_same() {
        let drawn = |number| {
            let mut draw = Draw::new(number);
            (0..20).map(|_| draw.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn all_below_returns_every_number() {
        for number in 0..10 {
            let mut tried: Vec<_> = Draw::new(number).all_below(5).collect();
            tried.sort();
            assert_eq!(tried, [0, 1, 2, 3, 4]);
        }
        assert_eq!(Draw::new(0).all_below(0).count(), 0);
    }
}
