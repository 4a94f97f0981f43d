//! Weights, cache and working memory, added up.

/// What a model's files say of its memory. All sums saturate: a header that lies gives a number too large, never a
/// small one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Bytes of all tensors.
    pub weights: u64,
    /// Bytes of KV cache for each token of context, in layers that attend to all of it, at 16 bits a number.
    pub cache_per_token: u64,
    /// The same in layers that attend to a window only.
    pub window_cache_per_token: u64,
    /// Tokens in that window.
    pub window: u64,
    /// Bytes of recurrent state for each request at a time (Mamba and its like).
    pub state_per_slot: u64,
    /// Words of the vocabulary.
    pub vocabulary: u64,
    /// Width of the embedding.
    pub width: u64,
    /// Width inside the feed-forward layers.
    pub inner: u64,
    /// Tokens of context that it was trained for.
    pub trained_context: Option<u64>,
}

/// How a model is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Tokens of context of each request; `None`: as many as it was trained for.
    pub context: Option<u64>,
    /// Requests at a time.
    pub slots: u64,
    /// Tokens that are computed in one go: llama.cpp's `--ubatch-size` (512), vLLM's `--max-num-batched-tokens`.
    pub batch: u64,
    /// Bytes of the mask that says which tokens see which, for each token of context and each of the batch.
    pub mask: u64,
    /// What a runtime takes before any tensor: CUDA's context, kernels, allocator.
    pub runtime: u64,
}

const MIB: u64 = 1 << 20;

impl Use {
    /// By llama.cpp's server, one slot.
    #[must_use]
    pub fn llama(context: Option<u64>, on_gpu: bool) -> Self {
        // CUDA's context and kernels take some hundred MiB before any tensor; in RAM it keeps prompts of the past too.
        Self { context, slots: 1, batch: 512, mask: 2, runtime: if on_gpu { 600 * MIB } else { 512 * MIB } }
    }

    /// By vLLM on so many GPUs, one request at a time.
    #[must_use]
    pub fn vllm(context: u64, gpus: u64) -> Self {
        // On each GPU: CUDA, PyTorch's allocator and captured graphs.
        let runtime = gpus.saturating_mul(2048 * MIB);
        Self { context: Some(context), slots: 1, batch: 8192, mask: 0, runtime }
    }
}

/// Assumed of a model that does not say what it was trained for.
const CONTEXT: u64 = 4096;
/// Bytes of a logit or an activation while it is computed.
const FLOAT: u64 = 4;
/// Buffers as wide as the embedding that are alive at the same time: input, residual, query, key, value, output.
const WIDE: u64 = 6;
/// The same, as wide as the feed-forward layers: gate, up, product.
const INNER: u64 = 3;

impl Footprint {
    /// Tokens that each request may have.
    #[must_use]
    pub fn context(&self, of: Use) -> u64 {
        of.context.or(self.trained_context).unwrap_or(CONTEXT)
    }

    /// Bytes of KV cache and recurrent state in all.
    #[must_use]
    pub fn cache(&self, of: Use) -> u64 {
        let context = self.context(of);
        let full = self.cache_per_token.saturating_mul(context);
        // What is computed in one go has to be in the cache beside the window.
        let seen = context.min(self.window.saturating_add(of.batch));
        let window = self.window_cache_per_token.saturating_mul(seen);
        full.saturating_add(window).saturating_add(self.state_per_slot).saturating_mul(of.slots.max(1))
    }

    /// Bytes that one computation takes beside weights and cache: the logits of a batch, its activations and its mask.
    #[must_use]
    pub fn scratch(&self, of: Use) -> u64 {
        let numbers = self
            .vocabulary
            .saturating_add(self.width.saturating_mul(WIDE))
            .saturating_add(self.inner.saturating_mul(INNER));
        let mask = self.context(of).saturating_mul(of.mask);
        numbers.saturating_mul(FLOAT).saturating_add(mask).saturating_mul(of.batch)
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self, of: Use) -> u64 {
        [self.cache(of), self.scratch(of), of.runtime].into_iter().fold(self.weights, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USE: Use = Use { context: Some(1000), slots: 2, batch: 100, mask: 2, runtime: 7 };

    #[test]
    fn every_slot_has_a_cache_of_its_own() {
        let model = Footprint { cache_per_token: 3, state_per_slot: 5, ..Footprint::default() };
        assert_eq!(model.cache(USE), 2 * (3 * 1000 + 5));
        assert_eq!(model.cache(Use { slots: 0, ..USE }), 3 * 1000 + 5);
    }

    #[test]
    fn a_window_bounds_its_layers_cache() {
        let model = Footprint { window_cache_per_token: 3, window: 50, ..Footprint::default() };
        assert_eq!(model.cache(Use { slots: 1, ..USE }), 3 * 150);
        assert_eq!(model.cache(Use { slots: 1, context: Some(20), ..USE }), 3 * 20);
    }

    #[test]
    fn a_context_that_is_not_given_is_the_one_trained_for() {
        let model = Footprint { trained_context: Some(9), ..Footprint::default() };
        assert_eq!(model.context(Use { context: None, ..USE }), 9);
        assert_eq!(Footprint::default().context(Use { context: None, ..USE }), CONTEXT);
    }

    #[test]
    fn absurd_numbers_give_the_largest_sum_and_no_overflow() {
        let most = Footprint { weights: u64::MAX, cache_per_token: u64::MAX, ..Footprint::default() };
        assert_eq!(most.total(USE), u64::MAX);
    }
}
