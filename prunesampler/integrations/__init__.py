"""Lightning, Transformers, Ray and timm's vision transformers."""
