//! The scenario files live beside this crate; its test target runs them.
