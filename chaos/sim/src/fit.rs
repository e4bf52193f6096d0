//! How near the models are to what they stand for: the same measurements on the real chitchat and
//! openraft and on the models, side by side.

pub mod gossip;
pub mod registry;
pub mod stats;
