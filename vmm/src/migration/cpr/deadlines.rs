//! How long the steps of an update may take.

use std::time::Duration;

/// The default deadline of the new binary.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a process that has passed its deadline has to end or to fall back by itself.
pub const GRACE: Duration = Duration::from_secs(2);
/// The deadline of an old binary after a fallback: longer than it ever takes.
pub const WAY_BACK: Duration = Duration::from_secs(60);
