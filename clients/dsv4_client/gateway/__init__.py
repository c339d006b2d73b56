"""The HTTP gateway: OpenAI's Chat, Completions and Responses APIs and Anthropic's Messages, over gRPC to the server."""
