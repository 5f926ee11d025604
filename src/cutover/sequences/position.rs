//! Where a sequence stands, and where it is to stand so that nothing it gives was given before.

use serde::{Deserialize, Serialize};

/// What a sequence says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The value it gave last; before the first use, the one it will give first.
    pub last_value: i64,
    /// Whether that value was given.
    pub is_called: bool,
}

/// What values a sequence can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Its step, which is not 0.
    pub increment: i64,
    /// The least value.
    pub minimum: i64,
    /// The greatest value.
    pub maximum: i64,
    /// Whether it begins again after its last value.
    pub cycle: bool,
}

impl Bounds {
    /// Whether the sequence can have this value.
    pub fn hold(&self, value: i64) -> bool {
        (self.minimum..=self.maximum).contains(&value)
    }

    /// How many whole steps there are from a value to the last one.
    fn steps_left(&self, value: i64) -> i128 {
        let end = if self.increment > 0 { self.maximum } else { self.minimum };
        (i128::from(end) - i128::from(value)) / i128::from(self.increment)
    }
}

impl Position {
    /// The position `margin` steps further, and how many steps that were. Never more than half of the steps that are left: a
    /// margin that used up the sequence would do the harm that it is there to prevent. A sequence that begins again does
    /// not do so for a margin.
    #[must_use]
    pub fn ahead(self, margin: u64, bounds: &Bounds) -> (Self, u64) {
        let most = u64::try_from(bounds.steps_left(self.last_value).max(0) / 2).unwrap_or(u64::MAX);
        let steps = margin.min(most);
        let value = i128::from(self.last_value) + i128::from(steps) * i128::from(bounds.increment);
        (Self { last_value: i64::try_from(value).unwrap_or(self.last_value), ..self }, steps)
    }

    /// The first position whose next value lies beyond a column's furthest, on the same grid of steps; none when this one
    /// is already. The bounds have to hold the column's value.
    pub fn beyond(self, column: i64, bounds: &Bounds) -> Option<Self> {
        let (increment, column) = (i128::from(bounds.increment), i128::from(column));
        let next = i128::from(self.last_value) + if self.is_called { increment } else { 0 };
        let distance = (column - next) * increment.signum();
        if distance < 0 {
            return None;
        }
        let value = next + distance / increment.abs() * increment;
        // it lies between here and the column
        i64::try_from(value).ok().map(|last_value| Self { last_value, is_called: true })
    }

    /// Whether no value is left to give.
    pub fn is_exhausted(self, bounds: &Bounds) -> bool {
        self.is_called && !bounds.cycle && bounds.steps_left(self.last_value) < 1
    }

    /// Whether this position lies behind another in the direction of the increment.
    pub fn is_behind(self, other: Self, bounds: &Bounds) -> bool {
        let key = |position: Self| {
            (i128::from(position.last_value) * i128::from(bounds.increment.signum()), position.is_called)
        };
        key(self) < key(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIGINT: Bounds = Bounds { increment: 1, minimum: 1, maximum: i64::MAX, cycle: false };
    const DOWN: Bounds = Bounds { increment: -1, minimum: i64::MIN, maximum: -1, cycle: false };

    fn called(last_value: i64) -> Position {
        Position { last_value, is_called: true }
    }

    fn fresh(last_value: i64) -> Position {
        Position { last_value, is_called: false }
    }

    #[test]
    fn a_margin_is_steps_in_the_increments_direction() {
        assert_eq!(called(10).ahead(5, &BIGINT), (called(15), 5));
        assert_eq!(fresh(1).ahead(5, &BIGINT), (fresh(6), 5));
        assert_eq!(called(-10).ahead(5, &DOWN), (called(-15), 5));
        assert_eq!(called(10).ahead(5, &Bounds { increment: 10, ..BIGINT }), (called(60), 5));
    }

    #[test]
    fn a_margin_leaves_half_of_what_is_left() {
        let small = Bounds { maximum: 32767, ..BIGINT };
        assert_eq!(called(32000).ahead(9000, &small), (called(32383), 383));
        assert_eq!(called(32767).ahead(9000, &small), (called(32767), 0));
        assert_eq!(called(32767).ahead(9000, &Bounds { cycle: true, ..small }), (called(32767), 0));
        for bounds in [BIGINT, DOWN, Bounds { increment: i64::MAX, ..BIGINT }, Bounds { increment: i64::MIN, ..DOWN }] {
            for value in [bounds.minimum, bounds.maximum] {
                let (position, _) = called(value).ahead(u64::MAX, &bounds);
                assert!(bounds.hold(position.last_value), "{bounds:?} {position:?}");
            }
        }
        assert_eq!(called(i64::MIN).ahead(u64::MAX, &Bounds { minimum: i64::MIN, ..BIGINT }).0, called(-1));
    }

    #[test]
    fn the_next_value_lies_beyond_the_column() {
        assert_eq!(called(10).beyond(10, &BIGINT), None);
        assert_eq!(called(10).beyond(11, &BIGINT), Some(called(11)));
        assert_eq!(fresh(1).beyond(0, &BIGINT), None);
        assert_eq!(fresh(1).beyond(1, &BIGINT), Some(called(1)));
        assert_eq!(called(-10).beyond(-9, &DOWN), None);
        assert_eq!(called(-10).beyond(-20, &DOWN), Some(called(-20)));
        assert_eq!(called(1).beyond(i64::MAX, &BIGINT), Some(called(i64::MAX)));
        assert_eq!(called(-1).beyond(i64::MIN, &DOWN), Some(called(i64::MIN)));
        assert_eq!(called(i64::MAX).beyond(i64::MAX, &BIGINT), None);
    }

    #[test]
    fn odd_values_stay_odd() {
        let odd = Bounds { increment: 2, ..BIGINT };
        assert_eq!(called(101).beyond(102, &odd), None);
        assert_eq!(called(101).beyond(103, &odd), Some(called(103)));
        assert_eq!(called(101).beyond(108, &odd), Some(called(107)));
        assert_eq!(called(-1).beyond(-8, &Bounds { increment: -2, ..DOWN }), Some(called(-7)));
    }

    #[test]
    fn a_sequence_without_values_is_told() {
        let small = Bounds { increment: 2, minimum: 1, maximum: 10, cycle: false };
        assert!(called(9).is_exhausted(&small));
        assert!(!called(8).is_exhausted(&small));
        assert!(!fresh(9).is_exhausted(&small));
        assert!(!called(9).is_exhausted(&Bounds { cycle: true, ..small }));
        assert!(called(i64::MIN).is_exhausted(&DOWN) && !called(-1).is_exhausted(&DOWN));
    }

    #[test]
    fn behind_is_by_the_direction() {
        assert!(called(1).is_behind(called(2), &BIGINT) && !called(2).is_behind(called(1), &BIGINT));
        assert!(called(-1).is_behind(called(-2), &DOWN) && fresh(1).is_behind(called(1), &BIGINT));
    }
}
