"""What this project does, shown in about five minutes: python -m alibi.demo."""
