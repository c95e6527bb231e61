//! "This before that", and what goes wrong otherwise: what the orders of saving and restoring keep.

/// "`first` comes before `then`".
#[derive(Clone, Copy, Debug)]
pub struct Constraint<T> {
    /// Its number, for messages, tests and `--plant swap-N`.
    pub number: u8,
    /// The earlier one.
    pub first: T,
    /// The later one.
    pub then: T,
    /// What goes wrong otherwise.
    pub reason: &'static str,
}

impl<T: Copy + PartialEq> Constraint<T> {
    /// One of a table.
    pub const fn new(number: u8, first: T, then: T, reason: &'static str) -> Self {
        Self { number, first, then, reason }
    }

    /// Whether `order` keeps it.
    pub fn holds(&self, order: &[T]) -> bool {
        let position = |item| order.iter().position(|&other| other == item);
        position(self.first) < position(self.then)
    }
}

/// `order`, or what becomes of it if a swap is planted that breaks one of `constraints`.
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

/// `order` with `constraint` broken, and as few others as moving one item can: `then` directly
/// before `first`, or `first` directly after `then`.
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
    fn a_swap_breaks_its_constraint_and_no_other_if_it_can() {
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[0], &TABLE), ['b', 'a', 'c', 'd']);
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[1], &TABLE), ['a', 'c', 'b', 'd']);
        assert_eq!(broken(['a', 'b', 'c', 'd'], &TABLE[2], &TABLE), ['d', 'a', 'b', 'c']);
        let kept = |order: [char; 4]| TABLE.map(|constraint| constraint.holds(&order));
        assert_eq!(kept(['d', 'a', 'b', 'c']), [true, true, false]);
    }

    #[test]
    fn nothing_is_swapped_unless_it_is_planted() {
        assert_eq!(in_order(['a', 'b', 'c', 'd'], &TABLE), ['a', 'b', 'c', 'd']);
    }
}
