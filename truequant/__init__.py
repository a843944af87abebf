"""truequant: quantization-aware training whose Int8 model is, bit for bit, the model you validated."""
