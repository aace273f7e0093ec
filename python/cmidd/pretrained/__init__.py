"""Networks trained on real data: the bank in which CMI is measured, and the experts MTT matches."""
