//! `cpr-reboot`: saves the guest so that a later process continues it, even after a host reboot.
//!
//! RAM stays where it is, in a file that outlives the process (`memory::file`). The state goes to
//! the migration channel's file, with a [`section`] that tells which content of the RAM file it
//! belongs to. Who may run the guest is decided by the lock on the RAM file and by its time of
//! modification:
//!
//! | | lock | time of modification |
//! |---|---|---|
//! | the guest runs, or may run | held | when it was claimed |
//! | saved (`postmigrate`) | released | the state's: the state fits |
//! | a process loads the state | held | the state's |
//! | that process has claimed the guest, or `cont` has in the old one | held | later: the state is stale |

mod error;
pub mod outgoing;
pub mod section;

pub use error::{RebootError, RebootLoadError};
