/// A source of unpredictable bytes. Implementations live outside the domain.
pub trait Entropy: Send + Sync + 'static {
    fn fill(&self, bytes: &mut [u8]);
}
