"""What tests share: samples, stand-ins, and what runs and watches processes. No tests."""
