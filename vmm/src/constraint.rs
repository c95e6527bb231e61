//! Ordering constraints on the steps of saving and restoring, each with the reason for it.

/// The constraint that `first` comes before `then`.
#[derive(Clone, Copy, Debug)]
pub struct Constraint<T> {
    /// Number used in messages, tests and `--plant swap-N`.
    pub number: u8,
    /// The item that must come first.
    pub first: T,
    /// The item that must come later.
    pub then: T,
    /// What goes wrong if the constraint is violated.
    pub reason: &'static str,
}

impl<T: Copy + PartialEq> Constraint<T> {
    /// Creates a constraint, usable in a constant table.
    pub const fn new(number: u8, first: T, then: T, reason: &'static str) -> Self {
        Self { number, first, then, reason }
    }

    /// Returns whether `order` satisfies the constraint.
    pub fn holds(&self, order: &[T]) -> bool {
        let position = |item| order.iter().position(|&other| other == item);
        position(self.first) < position(self.then)
    }
}

/// Returns `order`, or a changed order if a planted swap breaks one of `constraints`.
pub fn in_order<T: Copy + PartialEq, const N: usize>(
    order: [T; N],
    constraints: &[Constraint<T>],
) -> [T; N] {
    #[cfg(feature = "failpoints")]
    if let Some(constraint) =
        constraints.iter().find(|c| Some(c.number) == crate::failpoints::swapped())
    {
        return broken(order, constraint, constraints);
    }
    let _ = constraints;
    order
}

/// Returns `order` with `constraint` broken by moving one item: `then` to directly before `first`,
/// or `first` to directly after `then`, whichever breaks fewer of `constraints`.
#[cfg(feature = "failpoints")]
fn broken<T: Copy + PartialEq, const N: usize>(
    order: [T; N],
    constraint: &Constraint<T>,
    constraints: &[Constraint<T>],
) -> [T; N] {
    let at = |item| order.iter().position(|&other| other == item);
    let (Some(first), Some(then)) = (at(constraint.first), at(constraint.then)) else {
        return order;
    };
    let (mut earlier, mut later) = (order, order);
    earlier[first..=then].rotate_right(1);
    later[first..=then].rotate_left(1);
    let cost = |order: &[T; N]| constraints.iter().filter(|c| !c.holds(order)).count();
    if cost(&later) < cost(&earlier) { later } else { earlier }
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;

    const TABLE: [Constraint<char>; 3] = [
        Constraint::new(1, 'a', 'b', "b needs a"),
        Constraint::new(2, 'b', 'c', "c needs b"),
        Constraint::new(3, 'a', 'd', "d needs a"),
    ];

    #[test]
    fn swap_breaks_as_few_constraints_as_possible() {
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[0], &TABLE), ['b', 'a', 'c', 'd']);
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[1], &TABLE), ['a', 'c', 'b', 'd']);
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[2], &TABLE), ['d', 'a', 'b', 'c']);
        let kept = |order: [char; 4]| TABLE.map(|constraint| constraint.holds(&order));
        assert_eq!(kept(['d', 'a', 'b', 'c']), [true, true, false]);
    }

    #[test]
    fn order_is_kept_without_planted_swap() {
        assert_eq!(in_order(['a', 'b', 'c', 'd'], &TABLE), ['a', 'b', 'c', 'd']);
    }
}
