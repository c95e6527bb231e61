//! The keeper: a process that backs every update. It continues the guest if the VMM's own process
//! ends, or does not end in time, before the update is reported complete.
//!
//! It shares the address space of the process that started it, and its descriptors until that
//! executes another program, so it has everything that the guest consists of: it can continue the
//! guest whatever ends the process, SIGKILL included. A single place, the [commit point](commit),
//! decides which process continues the guest, so that never two do. How the guest is continued is
//! not defined here: the keeper calls the function it was given.
//!
//! As a side effect, it holds the old address space while the new binary takes over. `execve` in a
//! process that has a VM would wait for the VM's teardown, RCU grace periods for the irqchip and
//! the unmapping of all guest RAM; with the keeper, it only drops a reference. Once the guest runs
//! again, the keeper is killed, and the teardown takes place in it. It runs at the VMM's own
//! priority, because the guest's page faults are slow until it is over; at a lower one, a guest
//! that keeps every CPU busy would delay it for seconds.

pub mod child;
pub mod commit;
#[cfg(test)]
mod model;
mod process;
pub mod stack;

pub use child::{AdoptedKeeper, is_watching};
pub use process::{Ending, Keeper, KeeperError, TIMER_FD, Watch, abandon_newest, set_timer};
