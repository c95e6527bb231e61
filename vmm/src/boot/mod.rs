//! What the guest starts from: the image, and the entry it asks for.

mod image;
mod placement;
mod pvh;

#[cfg(test)]
pub(crate) use pvh::tests::kernel;

pub use image::{BootImage, ImageError};
pub use pvh::{BootError, PvhEntry, load};
