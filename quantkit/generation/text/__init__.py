"""Text: conversations become prompts, prompts become token ids, and token ids become text again."""
