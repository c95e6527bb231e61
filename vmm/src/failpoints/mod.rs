//! Fail points: named places on every edge of an update at which a test can make it fail or crash.
//!
//! Armed by `--failpoint POINT=ACTION` or QMP `x-set-failpoint`, listed by `query-failpoints`; each
//! acts once. Without the feature `failpoints`, none of this is in the binary.

mod action;
mod loss;
mod planted;
mod point;
pub mod seam;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

pub use action::{Action, ActionError, relieve};
pub use planted::{CONSTRAINTS, Plant, Planted, plant, planted, swapped};
pub use point::{Point, Side};

static ARMED: Mutex<BTreeMap<Point, Action>> = Mutex::new(BTreeMap::new());
/// Whether any point is armed: if none is, a point costs only a load.
static ANY: AtomicBool = AtomicBool::new(false);
static HELPER: AtomicI32 = AtomicI32::new(0);
/// The pretended version; -1 if none is.
static PRETENDED: AtomicI64 = AtomicI64::new(-1);

/// An error injected by a fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fail point {point}: {}", std::io::Error::from(*.errno))]
pub struct Injected {
    point: Point,
    errno: Errno,
}

/// A fail point to arm, `POINT=ACTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailPoint {
    /// The point.
    pub point: Point,
    /// What happens there.
    pub action: Action,
}

/// `POINT=ACTION` is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailPointError {
    /// The point is unknown.
    #[error("unknown fail point \"{0}\": query-failpoints lists them")]
    Point(String),
    /// The action is invalid.
    #[error(transparent)]
    Action(#[from] ActionError),
}

impl FailPoint {
    /// Parses `action` at `point`.
    pub fn new(point: &str, action: &str) -> Result<Self, FailPointError> {
        let known = Point::ALL.iter().find(|known| known.name() == point);
        let point = *known.ok_or_else(|| FailPointError::Point(point.to_owned()))?;
        Ok(Self { point, action: action.parse()? })
    }
}

impl FromStr for FailPoint {
    type Err = FailPointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (point, action) = text.split_once('=').unwrap_or((text, ""));
        Self::new(point, action)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn armed_points() -> std::sync::MutexGuard<'static, BTreeMap<Point, Action>> {
    ARMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this binary pretend to read another version of the saved state.
pub fn pretend_version(version: u32) {
    PRETENDED.store(version.into(), Ordering::SeqCst);
}

/// Returns the version that it pretends to read, if any.
pub fn pretended_version() -> Option<u32> {
    u32::try_from(PRETENDED.load(Ordering::SeqCst)).ok()
}

/// Arms a point.
pub fn arm(FailPoint { point, action }: FailPoint) {
    let mut armed = armed_points();
    match action {
        Action::Off => drop(armed.remove(&point)),
        action => drop(armed.insert(point, action)),
    }
    ANY.store(!armed.is_empty(), Ordering::SeqCst);
}

/// Disarms all points.
pub fn disarm() {
    armed_points().clear();
    ANY.store(false, Ordering::SeqCst);
}

/// Returns what is armed at `point`.
pub fn armed(point: Point) -> Option<Action> {
    armed_points().get(&point).cloned()
}

/// Sets the helper, which an action may kill.
pub fn set_helper(pid: i32) {
    HELPER.store(pid, Ordering::SeqCst);
}

/// Carries out what is armed at `point`, once.
pub fn at(point: Point) -> Result<(), Injected> {
    match take(point) {
        Some(action) => action.act(point),
        None => Ok(()),
    }
}

/// Returns how many of `length` bytes are to be written at `point`.
pub fn written(point: Point, length: usize) -> usize {
    let mut armed = armed_points();
    match armed.get(&point) {
        Some(Action::ShortWrite) => {
            armed.remove(&point);
            length / 2
        }
        _ => length,
    }
}

fn take(point: Point) -> Option<Action> {
    if !ANY.load(Ordering::SeqCst) {
        return None;
    }
    let mut armed = armed_points();
    // Short writes are for `written`.
    if armed.get(&point) == Some(&Action::ShortWrite) {
        return None;
    }
    armed.remove(&point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_acts_once() {
        arm("serial=errno=EIO".parse().unwrap());
        let failed = at(Point::Serial).unwrap_err();
        assert_eq!(failed.to_string(), "fail point serial: Input/output error (os error 5)");
        assert_eq!(at(Point::Serial), Ok(()));
    }

    #[test]
    fn invalid_fail_points_are_named() {
        let errors =
            ["", "x=panic", "save", "save=explode", "save=errno=EWHAT", "save=signal=KILL"]
                .map(|text| text.parse::<FailPoint>().unwrap_err().to_string());
        insta::assert_debug_snapshot!(errors);
    }

    #[test]
    fn short_write_acts_only_on_writes() {
        arm("channel=short-write".parse().unwrap());
        assert_eq!(at(Point::Channel), Ok(()));
        assert_eq!(written(Point::Channel, 10), 5);
        assert_eq!(written(Point::Channel, 10), 10);
    }

    #[test]
    fn every_point_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
