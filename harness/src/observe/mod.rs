//! Observes a VMM from outside.

pub mod clock;
pub mod conversation;
pub mod fds;
pub mod frames;
pub mod image;
pub mod kvm_state;
pub mod mailbox;
pub mod maps;
pub mod observation;
pub mod phases;
pub mod poll;
pub mod process;
pub mod qmp;
pub mod qmp_inbox;
pub mod queries;
pub mod ram;
pub mod watch;
