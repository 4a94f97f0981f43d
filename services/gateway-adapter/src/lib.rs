//! HTTP in, bus out: the OpenAI-compatible endpoint.
