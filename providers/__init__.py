"""The outside systems behind handlers: for each a Protocol, an offline default and the cloud service."""
