//! The edge: requests are parsed, handed to a use case, and its answer is rendered.

mod convert;
mod image_service;

pub use image_service::ImageApi;
