//! Observes a VMM from outside.

pub mod clock;
pub mod conversation;
pub mod facts;
pub mod fds;
pub mod file_facts;
pub mod files;
pub mod frames;
pub mod image;
pub mod kvm_state;
pub mod mailbox;
pub mod maps;
pub mod observation;
pub mod outside;
pub mod patience;
pub mod phases;
pub mod poll;
pub mod proc_error;
pub mod process;
pub mod process_facts;
pub mod qmp;
pub mod qmp_inbox;
pub mod queries;
pub mod ram;
pub mod sleeps;
pub mod startup;
pub mod watch;
