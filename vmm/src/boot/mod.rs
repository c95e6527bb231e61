//! Booting the guest: the boot image and its entry point.

mod image;
mod placement;
mod pvh;

#[cfg(test)]
pub(crate) use pvh::tests::kernel;

pub use image::{BootImage, ImageError};
pub use pvh::{BootError, PvhEntry, load};
