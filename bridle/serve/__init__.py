"""The served model: an API of OpenAI's shape, whose answers are written token by token in one batch."""
