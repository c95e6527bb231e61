//! One VMM compared with another: the same scenarios on both, and in what they differ.

pub mod compare;
pub mod differences;
pub mod table;
