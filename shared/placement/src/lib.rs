//! The pure scheduling core: (state, event, now) to effects.
