//! One file a room.
